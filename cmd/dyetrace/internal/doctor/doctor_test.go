package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRun(t *testing.T) {
	t.Parallel()
	look := func(detail string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return detail, err }
	}
	got := Run(t.Context(), []Check{
		{"g", "good", "unused", look("fine", nil)},
		{"g", "bad", "mend it", look("", errors.New("broken"))},
		{"g", "so-so", "unused", look("", warn("oil it", "%s", "creaks"))},
		{"g", "elsewhere", "unused", look("", skip("not here"))},
	})
	want := []Finding{
		{"g", "good", OK, "fine", ""},
		{"g", "bad", Fail, "broken", "mend it"},
		{"g", "so-so", Warn, "creaks", "oil it"},
		{"g", "elsewhere", Skipped, "not here", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// Each check either finds what is there, or says what to do.
func TestAgentOnBareMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	paths := Paths{DB: filepath.Join(dir, "db.sock"), RunDir: dir}
	results := make(map[string]Finding)
	for _, f := range Run(t.Context(), Agent(paths)) {
		results[f.Check] = f
	}
	for _, check := range []string{"database", "switch"} {
		if f := results[check]; f.Result != Fail || f.Fix == "" || !strings.Contains(f.Detail, dir) {
			t.Errorf("%s: %+v; want it to fail, to name what is missing and to say what to do", check, f)
		}
	}
	ln, err := net.Listen("unix", paths.DB)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if f := Run(t.Context(), Agent(paths)[2:3])[0]; f.Check != "database" || f.Result != OK {
		t.Errorf("database, with a socket that is listened on: %+v", f)
	}
}

func TestTools(t *testing.T) {
	t.Parallel()
	if _, err := tools("sh", "no-such-program")(t.Context()); err == nil || err.Error() != "no-such-program not found in PATH" {
		t.Errorf("error %v", err)
	}
	if detail, err := tools("sh", "env")(t.Context()); detail != "sh, env" || err != nil {
		t.Errorf("%q, %v", detail, err)
	}
}

func TestOutputHasTheComplaint(t *testing.T) {
	t.Parallel()
	_, err := output(t.Context(), "sh", "-c", "echo first >&2; echo last word >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3: last word") {
		t.Errorf("error %v; want the last line of what the command complained of", err)
	}
}

func TestCapsOfRoot(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("these tests run as root: make test")
	}
	if detail, err := privileges(t.Context()); err != nil || detail != "CAP_NET_RAW, CAP_NET_ADMIN" {
		t.Errorf("%q, %v", detail, err)
	}
}
