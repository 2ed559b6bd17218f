package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// frr is bgpd of FRR, without zebra, with a directory of its own.
type frr struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
	vty *vty
	f   fabric
}

func startFRR(t *testing.T, addr string, peers []string, f fabric) learner {
	t.Helper()
	conf := fmt.Sprintf("router bgp %d\n bgp router-id %s\n no bgp default ipv4-unicast\n", localAS, addr)
	for _, p := range peers {
		conf += fmt.Sprintf(" neighbor %[1]s remote-as %[2]d\n neighbor %[1]s passive\n neighbor %[1]s update-source %[3]s\n", p, localAS, addr)
	}
	conf += " address-family l2vpn evpn\n"
	for _, p := range peers {
		conf += fmt.Sprintf("  neighbor %s activate\n", p)
	}
	conf += " exit-address-family\n"
	d := &frr{t: t, dir: t.TempDir(), f: f}
	file := filepath.Join(d.dir, "bgpd.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("/usr/lib/frr/bgpd", "-Z", "-S", "-f", file, "-i", filepath.Join(d.dir, "pid"), "-z", filepath.Join(d.dir, "zserv"),
		"--vty_socket", d.dir, "-P", "0", "-l", addr, "-p", "179")
	d.cmd.Dir, d.cmd.Stderr = d.dir, os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.cmd.Process.Kill(); d.cmd.Wait() })
	d.vty = d.connect()
	return d
}

func (d *frr) pid() int { return d.cmd.Process.Pid }

// wait asks each 10 ms: bgpd answers in some 50 µs, in the middle of a feed too.
func (d *frr) wait(n int) int64 {
	d.t.Helper()
	have := 0
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if have = d.routes(); have == n {
			return clock()
		}
	}
	d.t.Fatalf("%d routes (want %d)", have, n)
	return 0
}

func (d *frr) routes() (n int) {
	d.t.Helper()
	out, err := d.vty.run("show bgp l2vpn evpn summary json")
	var s struct {
		Peers map[string]struct{ PfxRcd int }
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		d.t.Fatalf("summary: %v: %s", err, out)
	}
	for _, p := range s.Peers {
		n += p.PfxRcd
	}
	return n
}

// read looks hosts up at random, one after another.
func (d *frr) read() (stop func() (lookups, found int)) {
	v := d.connect()
	var end atomic.Bool
	var lookups, found int
	var done sync.WaitGroup
	done.Go(func() {
		for !end.Load() {
			host := rand.IntN(d.f.vteps * d.f.hosts)
			vtep := d.f.vtep(host / d.f.hosts)
			out, err := v.run(fmt.Sprintf("show bgp l2vpn evpn route rd %s:%d mac %s json", vtep, d.f.vni(host), d.f.mac(host)))
			if err != nil {
				d.t.Errorf("lookup: %v", err)
				return
			}
			lookups++
			if strings.Contains(out, `"`+vtep.String()+`"`) {
				found++
			}
		}
	})
	return func() (int, int) {
		end.Store(true)
		done.Wait()
		v.Close()
		return lookups, found
	}
}

// vty is a connection to bgpd as vtysh has it: a command ends with a 0, an answer with three and a
// status.
type vty struct {
	net.Conn
	r *bufio.Reader
}

func (d *frr) connect() *vty {
	d.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var c net.Conn
		if c, err = net.Dial("unix", filepath.Join(d.dir, "bgpd.vty")); err == nil {
			v := &vty{c, bufio.NewReaderSize(c, 1<<16)}
			d.t.Cleanup(func() { c.Close() })
			if _, err := v.run("enable"); err != nil {
				d.t.Fatal(err)
			}
			return v
		}
	}
	d.t.Fatal(err)
	return nil
}

func (v *vty) run(command string) (string, error) {
	v.SetDeadline(time.Now().Add(patience))
	if _, err := v.Write(append([]byte(command), 0)); err != nil {
		return "", err
	}
	var out []byte
	for {
		part, err := v.r.ReadBytes(0)
		if out = append(out, part...); err != nil {
			return string(out), err
		}
		if bytes.HasSuffix(out, []byte{0, 0, 0}) {
			break
		}
	}
	status, err := v.r.ReadByte()
	if err == nil && status != 0 {
		err = fmt.Errorf("%q: status %d", command, status)
	}
	return string(out[:len(out)-3]), err
}
