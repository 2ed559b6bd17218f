package access

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/pki"
)

// place is a file system of its own in which contexts are looked for.
type place struct {
	t    *testing.T
	root string
	env  map[string]string
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, root: t.TempDir(), env: map[string]string{}}
	p.env["XDG_CONFIG_HOME"] = filepath.Join(p.root, "config")
	return p
}

func (p *place) options() Options {
	return Options{
		Getenv: func(name string) string { return p.env[name] },
		Etc:    filepath.Join(p.root, "etc"), LabParent: filepath.Join(p.root, "labs"),
	}
}

// write makes a context file whose server's port tells it from others.
func (p *place) write(path, port string) string {
	p.t.Helper()
	path = filepath.Join(p.root, path)
	text := "server: https://127.0.0.1:" + port + "\nserver_name: controller\ntls: {ca: ca.crt, cert: /abs/u.crt, key: sub/u.key}\n"
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600))
	if err != nil {
		p.t.Fatal(err)
	}
	return path
}

func TestOrder(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	o := p.options()
	want := func(what, port string) {
		t.Helper()
		c, err := Resolve(o)
		if err != nil || c.Server != "https://127.0.0.1:"+port {
			t.Errorf("%s: server %q, %v; want port %s", what, c.Server, err, port)
		}
	}
	// From the last resort to the first.
	if _, err := Resolve(o); !errors.Is(err, ErrNoContext) {
		t.Errorf("nothing there: %v; want %v", err, ErrNoContext)
	}
	p.write("labs/one/context.yaml", "1")
	want("the only lab", "1")
	p.write("labs/two/context.yaml", "2")
	if _, err := Resolve(o); !errors.Is(err, ErrNoContext) || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("two labs: %v; want %v, with their names", err, ErrNoContext)
	}
	p.write("etc/context.yaml", "3")
	want("/etc", "3")
	p.write("config/dyetrace/context.yaml", "4")
	want("XDG_CONFIG_HOME", "4")
	p.env["DYETRACE_LAB"] = "two"
	want("DYETRACE_LAB", "2")
	p.env["DYETRACE_CONTEXT"] = p.write("elsewhere.yaml", "5")
	want("DYETRACE_CONTEXT", "5")
	o.Lab = "one"
	want("--lab", "1")
	o.File = p.write("given.yaml", "6")
	want("--context", "6")
	o.Server = "https://127.0.0.1:7"
	want("--server", "7")
}

func TestHomeWithoutXDG(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.env = map[string]string{"HOME": p.root}
	p.write(".config/dyetrace/context.yaml", "8")
	if c, err := Resolve(p.options()); err != nil || c.Server != "https://127.0.0.1:8" {
		t.Errorf("server %q, %v", c.Server, err)
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	path := p.write("config/dyetrace/context.yaml", "1")
	o := p.options()
	o.TLS.Cert = "mine.crt"
	c, err := Resolve(o)
	if err != nil {
		t.Fatal(err)
	}
	want := pki.Files{CA: filepath.Join(filepath.Dir(path), "ca.crt"), Cert: "mine.crt", Key: filepath.Join(filepath.Dir(path), "sub/u.key")}
	if c.TLS != want || c.ServerName != "controller" || c.Source != path {
		t.Errorf("context %+v; want TLS %+v", c, want)
	}
	// Another server is not the one whose name the file tells.
	o.Server = "https://other:7443"
	if c, err := Resolve(o); err != nil || c.ServerName != "" {
		t.Errorf("server name %q, %v; want none", c.ServerName, err)
	}
	// Where flags say all, a file is not even read.
	o.TLS = pki.Files{CA: "a", Cert: "b", Key: "c"}
	o.File = filepath.Join(p.root, "absent")
	if c, err := Resolve(o); err != nil || c.TLS != o.TLS || c.Source != "" {
		t.Errorf("context %+v, %v", c, err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	tests := []struct{ name, text, want string }{
		{"empty", "", "it is empty; want keys server, server_name and tls"},
		{"unknown key", "servre: x\n", "servre"},
		{"broken", "server: [\n", "yaml"},
		{"no server", "server_name: controller\n", "server: missing; want https://HOST:PORT or unix:///PATH"},
		{"plain HTTP", "server: http://h:80\n", `"http://h:80"; want https://HOST:PORT`},
		{"port 0", "server: https://h:0\n", `"https://h:0"; want https://HOST:PORT`},
		{"no port", "server: https://h\n", `"https://h"; want https://HOST:PORT`},
		{"path", "server: https://h:1/x\n", "want https://HOST:PORT"},
		{"two slashes", "server: unix://run/api.sock\n", "three slashes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "context.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			o := p.options()
			o.File = path
			_, err := Resolve(o)
			if !errors.Is(err, ErrBadContext) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v; want one that is %v, names the file and says %q", err, ErrBadContext, tt.want)
			}
		})
	}
	o := p.options()
	o.File = filepath.Join(p.root, "absent.yaml")
	if _, err := Resolve(o); !errors.Is(err, ErrBadContext) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	o = p.options()
	o.Lab = "gone"
	if _, err := Resolve(o); !errors.Is(err, ErrNoContext) || !strings.Contains(err.Error(), "dyetrace lab up --lab gone") {
		t.Errorf("absent lab: %v", err)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   Context
		want endpoint
	}{
		{Context{Server: "https://dye.example.net:7443"}, endpoint{"https://dye.example.net:7443", "dye.example.net", ""}},
		{Context{Server: "https://[2001:db8::1]:7443"}, endpoint{"https://[2001:db8::1]:7443", "2001:db8::1", ""}},
		{Context{Server: "https://192.0.2.1:7443/", ServerName: "controller"}, endpoint{"https://192.0.2.1:7443", "controller", ""}},
		{Context{Server: "unix:///run/api.sock"}, endpoint{"https://controller", "controller", "/run/api.sock"}},
		{Context{Server: "unix:///run/api.sock", ServerName: "dye"}, endpoint{"https://dye", "dye", "/run/api.sock"}},
	} {
		if got, err := tt.in.endpoint(); got != tt.want || err != nil {
			t.Errorf("%+v: %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestClientReadsCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := pki.CreateCA(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(pki.Request{Role: pki.RoleUser, Name: "ann"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := Context{Server: "https://127.0.0.1:1", TLS: files, Source: "context.yaml"}
	if _, closeFn, err := c.Client(); err != nil {
		t.Error(err)
	} else {
		closeFn()
	}
	c.TLS.Key += ".gone"
	if _, _, err := c.Client(); !errors.Is(err, ErrBadContext) || !strings.Contains(err.Error(), "context.yaml: ") {
		t.Errorf("error %v; want one that is %v and names the context", err, ErrBadContext)
	}
}
