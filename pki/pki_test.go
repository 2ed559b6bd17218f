package pki

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := CreateCA(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, r Request) Files {
	t.Helper()
	f, err := ca.Issue(r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// handshake lets a client and a server meet on the loopback, and returns what each saw of the
// other. A TLS 1.3 client learns that it was refused at its first read.
func handshake(t *testing.T, server, client *tls.Config) (atServer tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			conn, err := ln.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			s := tls.Server(conn, server)
			if err := s.HandshakeContext(ctx); err != nil {
				return err
			}
			atServer = s.ConnectionState()
			_, err = s.Write([]byte("."))
			return err
		}()
	}()
	clientErr = func() error {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		c := tls.Client(conn, client)
		if err := c.HandshakeContext(ctx); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	}()
	serverErr = <-done
	return atServer, serverErr, clientErr
}

func mustServer(t *testing.T, f Files) *tls.Config {
	t.Helper()
	c, err := ServerTLS(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustClient(t *testing.T, f Files, serverName string) *tls.Config {
	t.Helper()
	c, err := ClientTLS(f, serverName)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	ca, stranger := newCA(t), newCA(t)
	controller := issue(t, ca, Request{Role: RoleController, Name: "controller", SANs: []string{"127.0.0.1", "::1", "dye.example.net"}})
	agent := issue(t, ca, Request{Role: RoleAgent, Name: "hv1"})
	foreign := issue(t, stranger, Request{Role: RoleUser, Name: "mallory"})
	mixed := foreign // trusts the right CA, is not trusted by it
	mixed.CA = controller.CA
	foreignServer := issue(t, stranger, Request{Role: RoleController, Name: "controller"})

	tests := []struct {
		name           string
		server, client Files
		dial           string
		serverErr      string // part of the error; empty is none
		clientErr      string
	}{
		{name: "by name", server: controller, client: agent, dial: "controller"},
		{name: "by other name", server: controller, client: agent, dial: "dye.example.net"},
		{name: "by address", server: controller, client: agent, dial: "127.0.0.1"},
		{name: "by IPv6 address", server: controller, client: agent, dial: "::1"},
		{name: "another host", server: controller, client: agent, dial: "10.0.0.1",
			clientErr: "it is for controller, dye.example.net, 127.0.0.1, ::1, not for 10.0.0.1", serverErr: "bad certificate"},
		{name: "server of another CA", server: foreignServer, client: agent, dial: "controller",
			clientErr: "which is not among the trusted CAs", serverErr: "remote error"},
		{name: "client of another CA", server: controller, client: mixed, dial: "controller",
			clientErr: "unknown certificate authority", serverErr: "unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cs, serverErr, clientErr := handshake(t, mustServer(t, tt.server), mustClient(t, tt.client, tt.dial))
			checkError(t, "server", serverErr, tt.serverErr)
			checkError(t, "client", clientErr, tt.clientErr)
			if tt.serverErr != "" || tt.clientErr != "" {
				return
			}
			if role, name, err := Peer(cs); role != RoleAgent || name != "hv1" || err != nil {
				t.Errorf("Peer = %q, %q, %v", role, name, err)
			}
			if cs.Version != tls.VersionTLS13 {
				t.Errorf("version = %s", tls.VersionName(cs.Version))
			}
		})
	}
}

func checkError(t *testing.T, who string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", who, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: error %v; want one with %q", who, err, want)
	}
}

// An agent must not be able to pose as the controller, even where somebody gave its certificate
// a host name and server authentication.
func TestAgentPosingAsController(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	template, err := ca.template(Request{Role: RoleController, Name: "controller"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	template.URIs[0] = identityURI(RoleAgent, "hv1")
	leaf := sign(t, ca, template)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	err = verifyServer([]*x509.Certificate{leaf}, roots, "controller", time.Now())
	checkError(t, "client", err, "it is for agent hv1; want a controller's")
}

func sign(t *testing.T, ca *CA, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestClientWithoutCertificate(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := mustServer(t, issue(t, ca, Request{Role: RoleController, Name: "controller"}))
	_, serverErr, clientErr := handshake(t, server, &tls.Config{InsecureSkipVerify: true})
	checkError(t, "server", serverErr, "didn't provide a certificate")
	checkError(t, "client", clientErr, "certificate required")
}

func TestOldTLSRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := mustServer(t, issue(t, ca, Request{Role: RoleController, Name: "controller"}))
	client := mustClient(t, issue(t, ca, Request{Role: RoleUser, Name: "ann"}), "controller")
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	_, serverErr, _ := handshake(t, server, client)
	checkError(t, "server", serverErr, "unsupported versions")
}

func TestRotation(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	controller := issue(t, ca, Request{Role: RoleController, Name: "controller"})
	user := issue(t, ca, Request{Role: RoleUser, Name: "ann"})
	server, client := mustServer(t, controller), mustClient(t, user, "controller")
	serial := func() string {
		t.Helper()
		cs, serverErr, clientErr := handshake(t, server, client)
		if err := errors.Join(serverErr, clientErr); err != nil {
			t.Fatal(err)
		}
		return cs.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if again := serial(); again != first {
		t.Fatalf("serial %s, then %s, with nothing renewed", first, again)
	}
	issue(t, ca, Request{Role: RoleUser, Name: "ann", Renew: true})
	second := serial()
	if second == first {
		t.Error("the renewed certificate is not used")
	}
	// Between the writing of a new key and of its certificate the old pair stays.
	other := newCA(t)
	foreign := issue(t, other, Request{Role: RoleUser, Name: "ann"})
	copyFile(t, foreign.Key, user.Key)
	if third := serial(); third != second {
		t.Error("a key without its certificate replaced the pair in use")
	}
	// The other half, and the other CA besides the old one: both sides change over.
	copyFile(t, foreign.Cert, user.Cert)
	appendFile(t, foreign.CA, controller.CA)
	if fourth := serial(); fourth == second {
		t.Error("a certificate of the added CA is not used")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = writeFile(to, b, 0o600, true)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func appendFile(t *testing.T, from, to string) {
	t.Helper()
	a, err1 := os.ReadFile(to)
	b, err2 := os.ReadFile(from)
	if err := errors.Join(err1, err2, writeFile(to, append(a, b...), 0o644, true)); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := newCA(t)
	good := issue(t, ca, Request{Role: RoleAgent, Name: "hv1"})
	other := issue(t, ca, Request{Role: RoleAgent, Name: "hv2"})
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*Files)) Files {
		f := good
		change(&f)
		return f
	}
	tests := []struct {
		name  string
		files Files
		now   time.Time
		is    error
		text  string
	}{
		{name: "good", files: good, now: now},
		{name: "no field", files: with(func(f *Files) { f.Key = "" }), now: now, text: "tls.key: missing"},
		{name: "no file", files: with(func(f *Files) { f.Cert += ".gone" }), now: now, is: fs.ErrNotExist, text: "tls.cert: open " + good.Cert},
		{name: "no PEM", files: with(func(f *Files) { f.CA = garbage }), now: now, text: "no certificate in it"},
		{name: "certificate for key", files: with(func(f *Files) { f.Key = f.Cert }), now: now, text: "no private key in it"},
		{name: "key of another", files: with(func(f *Files) { f.Key = other.Key }), now: now, is: ErrKeyMismatch, text: other.Key},
		{name: "leaf for CA", files: with(func(f *Files) { f.CA = f.Cert }), now: now, text: "is not a CA's"},
		{name: "no identity", files: Files{CA: good.CA, Cert: good.CA, Key: filepath.Join(ca.dir, caKey)}, now: now, is: ErrNoIdentity},
		{name: "expired", files: good, now: now.AddDate(2, 0, 0), is: ErrExpired, text: "it ended " + stamp(now.AddDate(0, 0, DefaultDays))},
		{name: "early", files: good, now: now.AddDate(-1, 0, 0), is: ErrNotYetValid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := Load(tt.files, tt.now)
			if tt.is == nil && tt.text == "" {
				if err != nil || p.Role != RoleAgent || p.Name != "hv1" || p.Verify(tt.now) != nil {
					t.Fatalf("Load = %+v, %v", p, err)
				}
				return
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v; want one that is %v", err, tt.is)
			}
			if tt.text != "" {
				checkError(t, "Load", err, tt.text)
			}
		})
	}
}

func TestServerTLSWantsController(t *testing.T) {
	t.Parallel()
	f := issue(t, newCA(t), Request{Role: RoleAgent, Name: "hv1"})
	_, err := ServerTLS(f)
	checkError(t, "ServerTLS", err, "it is for agent hv1; want a controller's")
	_, err = ClientTLS(f, "")
	checkError(t, "ClientTLS", err, "server name: missing")
}

func TestVerifyAgainstOtherCA(t *testing.T) {
	t.Parallel()
	f := issue(t, newCA(t), Request{Role: RoleUser, Name: "ann"})
	f.CA = filepath.Join(newCA(t).dir, caCert)
	p, err := Load(f, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	checkError(t, "Verify", p.Verify(time.Now()), "issued by CN=Dyetrace CA")
}

func TestCreateCANeverOverwrites(t *testing.T) {
	t.Parallel()
	for _, kept := range []string{caCert, caKey} {
		t.Run(kept, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, kept)
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := CreateCA(dir, time.Now()); !errors.Is(err, ErrExists) {
				t.Errorf("error %v; want %v", err, ErrExists)
			}
			if b, err := os.ReadFile(path); string(b) != "precious" || err != nil {
				t.Errorf("file holds %q, %v", b, err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestIssue(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	tests := []struct {
		name string
		req  Request
		err  string
	}{
		{name: "role", req: Request{Role: "admin", Name: "x"}, err: `role "admin" is unknown; want controller, agent or user`},
		{name: "empty name", req: Request{Role: RoleUser}, err: `name "" cannot be used`},
		{name: "path", req: Request{Role: RoleUser, Name: "../ca"}, err: `name "../ca" cannot be used`},
		{name: "the CA's name", req: Request{Role: RoleUser, Name: "ca"}, err: `name "ca" is taken`},
		{name: "san", req: Request{Role: RoleController, Name: "c", SANs: []string{"a b"}}, err: `san: "a b" is neither a host name nor an IP address`},
		{name: "days", req: Request{Role: RoleUser, Name: "ann", Days: -1}, err: "days: -1; want 1 or more"},
		{name: "too many days", req: Request{Role: RoleUser, Name: "ann", Days: 5000}, err: "days: 5000 would outlive the CA"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ca.Issue(tt.req, time.Now())
			checkError(t, "Issue", err, tt.err)
		})
	}
}

func TestIssuedFiles(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	f := issue(t, ca, Request{Role: RoleUser, Name: "ann", Days: 7})
	for path, mode := range map[string]fs.FileMode{f.Key: 0o600, f.Cert: 0o644, filepath.Join(ca.dir, caKey): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != mode {
			t.Errorf("%s: mode %v, %v; want %v", path, fi.Mode(), err, mode)
		}
	}
	if _, err := ca.Issue(Request{Role: RoleUser, Name: "ann"}, time.Now()); !errors.Is(err, ErrExists) {
		t.Errorf("issued twice: error %v; want %v", err, ErrExists)
	}
	p, err := Load(f, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(p.Leaf.NotAfter); left > 7*24*time.Hour || left < 7*24*time.Hour-time.Hour {
		t.Errorf("valid for %v; want 7 days", left)
	}
	if len(p.Leaf.ExtKeyUsage) != 1 || p.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("usages of a user's certificate: %v", p.Leaf.ExtKeyUsage)
	}
	entries, err := os.ReadDir(ca.dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("directory holds %v, %v; want CA and ann, nothing else", entries, err)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	tests := []struct {
		uris []string
		err  string
	}{
		{uris: []string{"dyetrace://agent/hv1"}},
		{uris: []string{"spiffe://site/hv1", "dyetrace://agent/hv1"}},
		{uris: nil, err: "want a URI name dyetrace://"},
		{uris: []string{"dyetrace://agent/hv1", "dyetrace://user/root"}, err: "want one"},
		{uris: []string{"dyetrace://root/hv1"}, err: `role "root" is unknown`},
		{uris: []string{"dyetrace://agent/"}, err: `name ""`},
		{uris: []string{"dyetrace://agent/a/b"}, err: `name "a/b"`},
	}
	for _, tt := range tests {
		template, err := ca.template(Request{Role: RoleAgent, Name: "hv1"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = nil
		for _, s := range tt.uris {
			template.URIs = append(template.URIs, mustURL(t, s))
		}
		role, name, err := Identity(sign(t, ca, template))
		checkError(t, strings.Join(tt.uris, " "), err, tt.err)
		if err == nil && (role != RoleAgent || name != "hv1") {
			t.Errorf("%v: %s %s", tt.uris, role, name)
		}
		if err != nil && !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%v: error %v; want one that is %v", tt.uris, err, ErrNoIdentity)
		}
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
