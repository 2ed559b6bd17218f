package ovn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// server is a real ovsdb-server with a southbound database of its own.
type server struct {
	t    *testing.T
	dir  string
	file Remote // of the files for ssl
	port map[string]int
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), port: make(map[string]int)}
	s.certificates()
	db := filepath.Join(s.dir, "sb.db")
	s.run("ovsdb-tool", "create", db, "/usr/share/ovn/ovn-sb.ovsschema")
	cmd := exec.Command("ovsdb-server", db, "--unixctl="+s.dir+"/ctl", "--remote=punix:"+s.dir+"/sock",
		"--log-file="+s.dir+"/log", "-vconsole:off",
		"--private-key="+s.dir+"/key.pem", "--certificate="+s.dir+"/cert.pem", "--ca-cert="+s.dir+"/ca.pem")
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (Debian packages ovn-common and openvswitch-common)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.await("its socket", func() bool { return exec.Command("ovs-appctl", "-t", s.dir+"/ctl", "version").Run() == nil })
	// Port 0 has the kernel choose, and the log tell: one after the other.
	for n, scheme := range []string{"tcp", "ssl"} {
		s.run("ovs-appctl", "-t", s.dir+"/ctl", "ovsdb-server/add-remote", "p"+scheme+":0:127.0.0.1")
		s.await(scheme, func() bool {
			text, _ := os.ReadFile(s.dir + "/log")
			found := listening.FindAllStringSubmatch(string(text), -1)
			if len(found) > n {
				s.port[scheme], _ = strconv.Atoi(found[n][1])
			}
			return len(found) > n
		})
	}
	return s
}

var listening = regexp.MustCompile(`listening on port (\d+)`)

func (s *server) await(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			text, _ := os.ReadFile(s.dir + "/log")
			s.t.Fatalf("ovsdb-server: waited for %s\n%s", what, text)
		}
	}
}

func (s *server) run(name string, args ...string) string {
	s.t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// create makes a row and returns its UUID.
func (s *server) create(table string, columns ...string) string {
	s.t.Helper()
	args := append([]string{"--db=unix:" + s.dir + "/sock", "--timeout=20", "create", table}, columns...)
	return s.run("ovn-sbctl", args...)
}

// certificates makes an authority, and a certificate with a key that is both the server's and the client's.
func (s *server) certificates() {
	s.t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	sign := func(name string, template, parent *x509.Certificate, public, signer *ecdsa.PrivateKey) {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &public.PublicKey, signer)
		if err != nil {
			s.t.Fatal(err)
		}
		write(name, "CERTIFICATE", der)
	}
	template := func(serial int64, name string, authority bool) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: authority, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
	}
	authority, own, other := key(), key(), key()
	root := template(1, "authority", true)
	sign("ca.pem", root, root, authority, authority)
	sign("other.pem", template(2, "another", true), template(2, "another", true), other, other)
	sign("cert.pem", template(3, "not the name that is dialed", false), root, own, authority)
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		s.t.Fatal(err)
	}
	write("key.pem", "PRIVATE KEY", der)
	s.file = Remote{Key: s.dir + "/key.pem", Cert: s.dir + "/cert.pem", CA: s.dir + "/ca.pem"}
}

// at is the server by an address.
func (s *server) at(scheme string) Remote {
	r := s.file
	r.Address = fmt.Sprintf("%s:127.0.0.1:%d", scheme, s.port[scheme])
	if scheme == "unix" {
		r.Address = "unix:" + s.dir + "/sock"
	}
	return r
}

func cookie(t *testing.T, id string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(id[:8], 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// TestOrigin asks a real database, by every sort of connection.
func TestOrigin(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	blue := s.create("Datapath_Binding", "tunnel_key=7", "external_ids:name=blue")
	s.create("Datapath_Binding", "tunnel_key=8", "external_ids:name=green")
	flow := func(columns ...string) string {
		return s.create("Logical_Flow", append([]string{"pipeline=egress", "table_id=4", "priority=3000", "match=\"ip4\"", "actions=\"drop;\""}, columns...)...)
	}
	rule := flow("logical_datapath="+blue, "external_ids:stage-name=ls_out_acl", "external_ids:stage-hint=0a1b2c3d",
		"external_ids:source=northd.c:6475")
	logged := flow("logical_datapath="+blue, "external_ids:stage-name=ls_in_acl_eval", `actions="log(name=\"no way\", severity=info, verdict=drop); /* drop */"`)
	// A group is there for as long as something refers to it.
	both := s.run("ovn-sbctl", "--db=unix:"+s.dir+"/sock", "--timeout=20", "--id=@group", "create", "Logical_DP_Group", "datapaths="+blue,
		"--", "create", "Logical_Flow", "pipeline=egress", "table_id=4", "priority=3000", `match="ip4"`, `actions="drop;"`,
		"logical_dp_group=@group", "external_ids:stage-name=lr_in_ip_routing")
	shared := both[strings.LastIndexByte(both, '\n')+1:]
	hint := flow("logical_datapath="+blue, "external_ids:stage-name=ls_out_acl_hint")
	port := s.create("Port_Binding", "logical_port=p", "datapath="+blue, "tunnel_key=1")

	for _, scheme := range []string{"unix", "tcp", "ssl"} {
		r := s.at(scheme)
		for _, tt := range []struct {
			name     string
			id       string
			datapath uint32
			want     Origin
			acl      *ACL
		}{
			{"rule", rule, 7, Origin{Table: "Logical_Flow", Datapath: "blue", Stage: "ls_out_acl", Source: "northd.c:6475"}, &ACL{Hint: "0a1b2c3d", Direction: "to-lport"}},
			{"logged rule", logged, 7, Origin{Table: "Logical_Flow", Datapath: "blue", Stage: "ls_in_acl_eval"}, &ACL{Name: "no way", Direction: "from-lport"}},
			{"of a group of datapaths", shared, 7, Origin{Table: "Logical_Flow", Datapath: "blue", Stage: "lr_in_ip_routing"}, nil},
			{"hint", hint, 7, Origin{Table: "Logical_Flow", Datapath: "blue", Stage: "ls_out_acl_hint"}, nil},
			{"a flow that names no datapath", rule, 0, Origin{Table: "Logical_Flow", Stage: "ls_out_acl", Source: "northd.c:6475"}, &ACL{Hint: "0a1b2c3d", Direction: "to-lport"}},
			{"port", port, 7, Origin{Table: "Port_Binding", Datapath: "blue"}, nil},
		} {
			o, err := r.Origin(t.Context(), Flow{Cookie: cookie(t, tt.id), Priority: 3000, Datapath: tt.datapath})
			if err != nil {
				t.Errorf("%s: %s: %v", scheme, tt.name, err)
				continue
			}
			if o.UUID != tt.id || o.Table != tt.want.Table || o.Datapath != tt.want.Datapath || o.Stage != tt.want.Stage || o.Source != tt.want.Source {
				t.Errorf("%s: %s: %+v, want %+v", scheme, tt.name, o, tt.want)
			}
			if (o.ACL == nil) != (tt.acl == nil) || o.ACL != nil && *o.ACL != *tt.acl {
				t.Errorf("%s: %s: ACL %+v, want %+v", scheme, tt.name, o.ACL, tt.acl)
			}
			if tt.name == "rule" && (o.Pipeline != "egress" || o.Number != 4 || o.Priority != 3000 || o.Match != "ip4" || o.Actions != "drop;") {
				t.Errorf("%s: %+v", scheme, o)
			}
		}
		for name, f := range map[string]Flow{
			"no row":           {Cookie: ^cookie(t, rule), Priority: 3000, Datapath: 7},
			"another priority": {Cookie: cookie(t, rule), Priority: 2999, Datapath: 7},
			"another datapath": {Cookie: cookie(t, rule), Priority: 3000, Datapath: 8},
		} {
			if o, err := r.Origin(t.Context(), f); !errors.Is(err, ErrNone) {
				t.Errorf("%s: %s: %+v, %v, want %v", scheme, name, o, err, ErrNone)
			}
		}
	}
	many := s.at("tcp")
	many.Address = "tcp:127.0.0.1:1, " + many.Address // the first does not answer
	if _, err := many.Origin(t.Context(), Flow{Cookie: cookie(t, rule), Priority: 3000, Datapath: 7}); err != nil {
		t.Errorf("the second of two addresses: %v", err)
	}
}

// TestEvaluated has rows as OVN 23.06 and later make them: a stage evaluates access control lists, and a flow of another
// drops what they deny. The list is found by what the packet met in the former.
func TestEvaluated(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	blue := s.create("Datapath_Binding", "tunnel_key=7", "external_ids:name=blue")
	row := func(pipeline string, table, priority int, stage, hint, match, actions string) string {
		columns := []string{"logical_datapath=" + blue, "pipeline=" + pipeline, fmt.Sprintf("table_id=%d", table), fmt.Sprintf("priority=%d", priority),
			fmt.Sprintf("match=%q", match), fmt.Sprintf("actions=%q", actions), "external_ids:stage-name=" + stage, `external_ids:source="northd.c:6764"`}
		if hint != "" {
			columns = append(columns, "external_ids:stage-hint="+hint)
		}
		return s.create("Logical_Flow", columns...)
	}
	const (
		dropped = "reg8[16] = 0; reg8[17] = 0; reg8[18] = 0; /* drop */"
		denies  = "reg8[17] = 1; next;"
		allows  = "reg8[16] = 1; next;"
		rule    = "reg0[7] == 1 && (inport == @web && ip4)"
	)
	hints := row("ingress", 8, 7, "ls_in_acl_hint", "", "ct.new && !ct.est", "reg0[7] = 1; reg0[9] = 1; next;")
	deny := row("ingress", 9, 2000, "ls_in_acl_eval", "0a1b2c3d", rule, denies)
	logged := row("ingress", 9, 2001, "ls_in_acl_eval", "0a1b2c3e", rule, `log(name="no way", severity=info, verdict=drop); `+denies)
	reject := row("ingress", 9, 2002, "ls_in_acl_eval", "0a1b2c3f", rule, "reg8[18] = 1; next;")
	pass := row("ingress", 9, 2003, "ls_in_acl_eval", "0a1b2c40", rule, "next;")
	allow := row("ingress", 9, 2004, "ls_in_acl_eval", "0a1b2c41", rule, allows)
	invalid := row("ingress", 9, 65532, "ls_in_acl_eval", "", "ct.inv", denies)
	sample := row("ingress", 10, 1100, "ls_in_acl_sample", "", "ip.proto == 6", "sample(probability=65535,collector_set=1,obs_domain=1,obs_point=1); next;")
	drops := row("ingress", 11, 1000, "ls_in_acl_action", "", "reg8[17] == 1", dropped)
	rejects := row("ingress", 11, 1000, "ls_in_acl_action", "", "reg8[18] == 1", "reg8[16] = 0; reg8[17] = 0; reg8[18] = 0; reject { /* eth.dst <-> eth.src; */ outport <-> inport; next; };")
	fallback := row("ingress", 11, 0, "ls_in_acl_action", "", "1", dropped)
	afterLB := row("ingress", 20, 2000, "ls_in_acl_after_lb_eval", "0b1b2c3d", rule, denies)
	afterLBDrops := row("ingress", 22, 1000, "ls_in_acl_after_lb_action", "", "reg8[17] == 1", dropped)
	out := row("egress", 4, 2000, "ls_out_acl_eval", "0c1b2c3d", `outport == "p" && ip`, denies)
	outDrops := row("egress", 5, 1000, "ls_out_acl_action", "", "reg8[17] == 1", dropped)

	flow := func(id string, table uint8, priority uint16) Flow {
		return Flow{Cookie: cookie(t, id), Table: table, Priority: priority, Datapath: 7}
	}
	hint := flow(hints, 16, 7)
	elsewhere := flow(deny, 17, 2000)
	elsewhere.Datapath = 8
	in := flow(drops, 19, 1000)
	for _, tt := range []struct {
		name   string
		drop   Flow
		before []Flow
		match  string
		acl    ACL
	}{
		{"drop", in, []Flow{hint, flow(deny, 17, 2000), flow(sample, 18, 1100)}, rule, ACL{Hint: "0a1b2c3d", Direction: "from-lport"}},
		{"drop, logged", in, []Flow{hint, flow(logged, 17, 2001)}, rule, ACL{Hint: "0a1b2c3e", Name: "no way", Direction: "from-lport"}},
		{"reject", flow(rejects, 19, 1000), []Flow{hint, flow(reject, 17, 2002)}, rule, ACL{Hint: "0a1b2c3f", Direction: "from-lport"}},
		{"of no list", in, []Flow{hint, flow(invalid, 17, 65532)}, "ct.inv", ACL{Direction: "from-lport"}},
		{"in the second tier", in, []Flow{hint, flow(pass, 17, 2003), flow(fallback, 19, 0), flow(deny, 17, 2000)}, rule, ACL{Hint: "0a1b2c3d", Direction: "from-lport"}},
		{"passed on, and dropped by default", flow(fallback, 19, 0), []Flow{hint, flow(pass, 17, 2003)}, "1", ACL{Direction: "from-lport"}},
		{"the last one did not deny it", in, []Flow{flow(deny, 17, 2000), flow(allow, 17, 2004)}, "reg8[17] == 1", ACL{Direction: "from-lport"}},
		{"of another datapath", in, []Flow{elsewhere}, "reg8[17] == 1", ACL{Direction: "from-lport"}},
		{"of another pipeline", in, []Flow{flow(out, 17, 2000)}, "reg8[17] == 1", ACL{Direction: "from-lport"}},
		{"nothing met before", in, nil, "reg8[17] == 1", ACL{Direction: "from-lport"}},
		{"a row that is gone", in, []Flow{{Cookie: ^cookie(t, deny), Table: 17, Priority: 2000, Datapath: 7}}, "reg8[17] == 1", ACL{Direction: "from-lport"}},
		{"after load balancing", flow(afterLBDrops, 30, 1000), []Flow{flow(deny, 17, 2000), flow(afterLB, 28, 2000)}, rule, ACL{Hint: "0b1b2c3d", Direction: "from-lport"}},
		{"to-lport", flow(outDrops, 47, 1000), []Flow{flow(deny, 17, 2000), flow(out, 46, 2000)}, `outport == "p" && ip`, ACL{Hint: "0c1b2c3d", Direction: "to-lport"}},
	} {
		tt.drop.Before = tt.before
		o, err := s.at("unix").Origin(t.Context(), tt.drop)
		if err != nil || o.ACL == nil || *o.ACL != tt.acl || o.Match != tt.match || !strings.HasSuffix(o.Stage, "_action") {
			t.Errorf("%s: %+v, ACL %+v, %v (want %+v, by %s)", tt.name, o, o.ACL, err, tt.acl, tt.match)
		}
	}
}

// TestPortKey asks a real database which logical port has a MAC.
func TestPortKey(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	blue := s.create("Datapath_Binding", "tunnel_key=7", "external_ids:name=blue")
	green := s.create("Datapath_Binding", "tunnel_key=8", "external_ids:name=green")
	port := func(datapath, name string, key int, macs string) {
		s.create("Port_Binding", "logical_port="+name, "datapath="+datapath, fmt.Sprintf("tunnel_key=%d", key), "mac="+macs)
	}
	port(blue, "a", 3, `"fa:16:3e:00:00:0a 10.0.0.1 fd00::1"`)
	port(green, "a-of-green", 4, `"fa:16:3e:00:00:0a 10.0.0.1"`)
	port(blue, "bare", 5, `"FA:16:3E:00:00:0B"`)
	port(blue, "two", 6, `["fa:16:3e:00:00:0c 10.0.0.3","fa:16:3e:00:00:0d 10.0.0.4"]`)
	port(blue, "any", 7, "unknown")
	port(blue, "none", 8, "[]")
	port(blue, "shared", 9, `"fa:16:3e:00:00:0e 10.0.0.5"`)
	port(blue, "sharing", 10, `"fa:16:3e:00:00:0e 10.0.0.6"`)
	for _, tt := range []struct {
		name     string
		datapath uint32
		mac      string
		local    []string
		want     uint32 // 0 is ErrNone
	}{
		{"the only one", 7, "fa:16:3e:00:00:0a", nil, 3},
		{"of another datapath", 8, "fa:16:3e:00:00:0a", []string{"a"}, 4},
		{"without addresses, in capitals", 7, "fa:16:3e:00:00:0b", nil, 5},
		{"the second of two", 7, "fa:16:3e:00:00:0d", nil, 6},
		{"a MAC that two have", 7, "fa:16:3e:00:00:0e", []string{"a"}, 0},
		{"a MAC that two have, of which one is here", 7, "fa:16:3e:00:00:0e", []string{"a", "sharing"}, 10},
		{"a MAC that two have, which are here", 7, "fa:16:3e:00:00:0e", []string{"shared", "sharing"}, 0},
		{"a MAC that none has", 7, "fa:16:3e:00:00:0f", []string{"any"}, 0},
		{"no such datapath", 9, "fa:16:3e:00:00:0a", []string{"a"}, 0},
	} {
		key, err := s.at("unix").PortKey(t.Context(), tt.datapath, tt.mac, tt.local)
		if key != tt.want || errors.Is(err, ErrNone) != (tt.want == 0) || err != nil && tt.want != 0 {
			t.Errorf("%s: %d, %v (want %d)", tt.name, key, err, tt.want)
		}
	}
	if _, err := (Remote{Address: "tcp:127.0.0.1:1"}).PortKey(t.Context(), 7, "fa:16:3e:00:00:0a", nil); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("nobody listens: %v (want that it could not be asked)", err)
	}
}

// TestNotAsked names why a database could not be asked, and never takes that for there being no row.
func TestNotAsked(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	stranger, bare := s.at("ssl"), s.at("ssl")
	stranger.CA = s.dir + "/other.pem"
	bare.Key, bare.Cert, bare.CA = "", "", ""
	for _, tt := range []struct {
		name, want string
		r          Remote
	}{
		{"nobody listens", "refused", Remote{Address: "tcp:127.0.0.1:1"}},
		{"no such socket", "no such file", Remote{Address: "unix:" + s.dir + "/nothing"}},
		{"of another authority", "certificate signed by unknown authority", stranger},
		{"no files", "SSL table", bare},
		{"no scheme", "want tcp:ADDRESS", Remote{Address: "127.0.0.1:6642"}},
		{"ssl where tcp is spoken", "", Remote{Address: fmt.Sprintf("ssl:127.0.0.1:%d", s.port["tcp"]), Key: s.file.Key, Cert: s.file.Cert, CA: s.file.CA}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := tt.r.Origin(ctx, Flow{Cookie: 1, Priority: 1})
		cancel()
		if err == nil || errors.Is(err, ErrNone) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "southbound") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.at("tcp").Origin(ctx, Flow{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
