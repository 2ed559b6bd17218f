package bench

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/internal/sandbox"
)

var rewrite = flag.Bool("update", false, "write what FRR sends into the file that TestFRRBytes holds it against")

// golden says by which commands FRR comes to send what; bgp/wire decodes it.
const golden = "../wire/testdata/frr.txtar"

// quiet is how long FRR sends nothing, after which a step with -update has all that it sends.
const quiet = 2 * time.Second

// TestFRRBytes has a real VTEP of FRR, kernel VXLAN and bridge included, send the bytes that the
// decoder is held against.
func TestFRRBytes(t *testing.T) {
	file, err := txtar.ParseFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	furnish(t)
	v := &vtep{t: t, dir: vtepDir(t)}
	for i := range file.Files {
		switch f := &file.Files[i]; f.Name {
		case "zebra.conf", "bgpd.conf":
			if err := os.WriteFile(filepath.Join(v.dir, f.Name), f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		case "cleanup":
			t.Cleanup(func() { v.step(f) })
		case "session":
			v.start()
			fallthrough
		default:
			v.step(f)
		}
	}
	if *rewrite && !t.Failed() {
		if err := os.WriteFile(golden, txtar.Format(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// vtep is zebra and bgpd, and the peer that hears what they say.
type vtep struct {
	t    *testing.T
	dir  string
	peer *sender
}

// vtepDir is a directory that the user that FRR runs as may use.
func vtepDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "frr")
	if err != nil {
		t.Fatal(err)
	}
	sandbox.Command(t, "chown", "frr:frr", dir)
	return dir
}

func (v *vtep) start() {
	v.t.Helper()
	v.daemon("zebra")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(v.dir, "zserv")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			v.t.Fatal("zebra has no socket")
		}
	}
	v.daemon("bgpd", "-l", "10.99.1.1", "-p", "179")
	v.run(`until vtysh --vty_socket $D -d bgpd -c 'show bgp l2vpn evpn vni' | grep -q '4000 .*L3'; do sleep 0.05; done`)
	v.peer = dial(v.t, "10.99.1.2", "10.99.1.1", make(chan []byte, 64))
}

func (v *vtep) daemon(name string, args ...string) {
	v.t.Helper()
	cmd := exec.Command("/usr/lib/frr/"+name, append([]string{"-f", filepath.Join(v.dir, name+".conf"), "-i", filepath.Join(v.dir, name+".pid"),
		"-z", filepath.Join(v.dir, "zserv"), "--vty_socket", v.dir, "-P", "0"}, args...)...)
	cmd.Dir = v.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if v.t.Failed() {
			v.t.Logf("%s: %s", name, out.Bytes())
		}
	})
}

func (v *vtep) run(line string) {
	v.t.Helper()
	cmd := exec.Command("timeout", "30", "sh", "-c", line)
	cmd.Env = append(os.Environ(), "D="+v.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		v.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// step does what a file says, and wants what it says that comes of it; with -update it writes that.
func (v *vtep) step(f *txtar.File) {
	v.t.Helper()
	var script, want []string
	for line := range strings.Lines(string(f.Data)) {
		line = strings.TrimSpace(line)
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			v.run(command)
		} else if body, ok := strings.CutPrefix(line, "> "); ok {
			b, err := hex.DecodeString(strings.ReplaceAll(body, " ", ""))
			if err != nil {
				v.t.Fatalf("%s: %v", f.Name, err)
			}
			if err := v.peer.push(message(2, b)); err != nil {
				v.t.Fatal(err)
			}
		} else {
			want = append(want, line)
			continue
		}
		script = append(script, line)
	}
	if f.Name == "setup" || f.Name == "cleanup" {
		return
	}
	if *rewrite {
		f.Data = []byte(strings.Join(append(script, v.heard(len(want), quiet)...), "\n") + "\n")
		return
	}
	if len(want) == 0 {
		v.t.Errorf("%s: nothing that should come of it", f.Name)
	}
	for _, line := range v.heard(len(want), 0) {
		if line != want[0] {
			v.t.Errorf("%s:\ngot  %s\nwant %s", f.Name, line, want[0])
		}
		want = want[1:]
	}
	for _, line := range want {
		v.t.Errorf("%s: FRR does not send %s", f.Name, line)
	}
}

// heard returns the next n bodies; or, with a quiet time, all until then, one at least.
func (v *vtep) heard(n int, quiet time.Duration) (lines []string) {
	for wait := patience; quiet > 0 || len(lines) < n; {
		select {
		case body := <-v.peer.updates:
			lines = append(lines, fmt.Sprintf("%x", body))
		case <-time.After(wait):
			return lines
		}
		if quiet > 0 {
			wait = quiet
		}
	}
	return lines
}
