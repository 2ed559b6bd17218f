package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const unitFile = "../deploy/systemd/dyetrace-agent.service"

// setting returns the values of a setting of the agent's unit.
func setting(t testing.TB, name string) []string {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return strings.Fields(value)
		}
	}
	t.Fatalf("%s has no %s", unitFile, name)
	return nil
}

// TestUnit: systemd takes the unit for valid, and for well closed in.
func TestUnit(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), filepath.Base(unitFile))
	// The program need not be installed for that.
	text = []byte(strings.Replace(string(text), "/usr/local/bin/dyetrace", "/bin/true", 1))
	if err := os.WriteFile(unit, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"verify", "--man=no", unit},
		// 2.8 of 10 for what it must have: root's sockets, the host's network, packet sockets, BPF.
		{"security", "--offline=true", "--threshold=30", "--no-pager", unit},
	} {
		if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze %s: %v (Debian: apt install systemd)\n%s", args[0], err, out)
		}
	}
}

// TestConfined has an agent install, repair, renew and remove a hook, and sample taps, with no more
// than its unit leaves it: those capabilities and no new ones, every file system read-only but for a
// /tmp of its own. (What systemd does by seccomp, and to devices, is not done here.)
func TestConfined(t *testing.T) {
	t.Parallel()
	h := prepareHost(t)
	var caps []string
	for _, c := range setting(t, "CapabilityBoundingSet") {
		caps = append(caps, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	if len(caps) == 0 || !slices.Equal(setting(t, "ProtectSystem"), []string{"strict"}) {
		t.Fatalf("capabilities %v, ProtectSystem %v", caps, setting(t, "ProtectSystem"))
	}
	script := `set -e
for m in / /run; do mount --bind $m $m; mount -o remount,ro,bind $m; done
mount -t tmpfs tmpfs /tmp
touch /etc/dyetrace-was-here 2>/dev/null && exit 70
exec setpriv --bounding-set ` + strings.Join(append([]string{"-all"}, caps...), ",") + ` --inh-caps -all --no-new-privs "$0"`
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	// The binary is below /tmp, which is another one inside: so is where it is from.
	dir, err := os.MkdirTemp("/run", "confined-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "agent")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, program)
	cmd.Env = append(os.Environ(), victimBridge+"="+h.bridge, fmt.Sprint(victimStep, "=0"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("inside the sandbox: %v\n%s", err, out)
	}
	if left := h.ours(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// The test would see it if something were missing.
	cmd = exec.Command("unshare", "--mount", "sh", "-c", strings.Replace(script, ",+net_raw", "", 1), program)
	cmd.Env = append(os.Environ(), victimBridge+"="+h.bridge, fmt.Sprint(victimStep, "=0"))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("without CAP_NET_RAW it works as well: the test tests nothing\n%s", out)
	}
}
