package inventory

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// cloud has two tenants that use the same addresses and MAC addresses, on one host even.
const cloud = `
networks:
  - {name: blue, cidr: 10.0.1.0/24}
  - {name: red, cidr: 10.0.1.0/24}
instances:
  - {name: blue-1, network: blue, mac: "fa:16:3e:00:00:01", ip: 10.0.1.11, host: hv1}
  - {name: blue-2, network: blue, mac: "fa:16:3e:00:00:02", ip: 10.0.1.12, host: hv2}
  - {name: blue-3, network: blue, mac: "fa:16:3e:00:00:03", ip: 10.0.1.13}
  - {name: red-1, network: red, mac: "fa:16:3e:00:00:01", ip: 10.0.1.11, host: hv1}
  - {name: red-2, network: red, mac: "fa:16:3e:00:00:02", ip: 10.0.1.14, host: hv1, port: tap-r2}
  - {name: twin, network: blue, mac: "fa:16:3e:00:00:0a", ip: 10.0.1.21, host: hv1}
  - {name: twin, network: red, mac: "fa:16:3e:00:00:0b", ip: 10.0.1.22, host: hv1}
`

func mustParse(t testing.TB, text string) File {
	t.Helper()
	f, err := Parse("cloud.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func port(bridge, name, mac, ifaceID string) *dyetracev1.Endpoint {
	return &dyetracev1.Endpoint{Bridge: bridge, Port: name, Mac: mac, IfaceId: ifaceID, LinkState: "up"}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	snap := NewSnapshot(mustParse(t, cloud))
	tests := []struct {
		ref, want string
		err       error
	}{
		{ref: "blue-1", want: "blue/blue-1"},
		{ref: "red/red-1", want: "red/red-1"},
		{ref: "red/10.0.1.11", want: "red/red-1"},
		{ref: "blue/10.0.1.11", want: "blue/blue-1"},
		{ref: "10.0.1.13", want: "blue/blue-3"},
		{ref: "red/twin", want: "red/twin"},
		{ref: "twin", err: ErrAmbiguous},
		{ref: "10.0.1.11", err: ErrAmbiguous},
		{ref: "10.0.1.99", err: ErrUnknown},
		{ref: "blue/10.0.1.99", err: ErrUnknown},
		{ref: "blue/red-1", err: ErrUnknown},
		{ref: "green/blue-1", err: ErrUnknown},
		{ref: "blue-9", err: ErrUnknown},
		{ref: "", err: ErrUnknown},
		{ref: "/", err: ErrUnknown},
	}
	for _, tt := range tests {
		got, err := snap.Resolve(tt.ref)
		if !errors.Is(err, tt.err) {
			t.Errorf("Resolve(%q): %v, want %v", tt.ref, err, tt.err)
		}
		if err == nil && got.Ref() != tt.want {
			t.Errorf("Resolve(%q) = %s, want %s", tt.ref, got.Ref(), tt.want)
		}
	}
	_, err := snap.Resolve("10.0.1.11")
	const want = `instance "10.0.1.11": more than one fits (want one of blue/blue-1, red/red-1)`
	if err == nil || err.Error() != want {
		t.Errorf("Resolve = %v, want %s", err, want)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	const m1, m2, m3 = "fa:16:3e:00:00:01", "FA:16:3E:00:00:02", "fa:16:3e:00:00:03"
	hv := func(name string, ports ...*dyetracev1.Endpoint) Host {
		return Host{Name: name, Connected: true, Endpoints: ports}
	}
	tests := []struct {
		name     string
		instance string
		hosts    []Host
		want     string
		err      error
	}{
		{name: "by MAC", instance: "blue-1", hosts: []Host{hv("hv1", port("br-int", "tap1", m1, ""))}, want: "hv1/br-int/tap1"},
		{name: "by MAC in capitals", instance: "blue-2", hosts: []Host{hv("hv2", port("br-int", "tap2", m2, "9f0c"))}, want: "hv2/br-int/tap2"},
		{name: "by iface-id with network", instance: "red-1",
			hosts: []Host{hv("hv1", port("br-int", "tap1", m1, "blue/blue-1"), port("br-int", "tap9", m1, "red/red-1"))}, want: "hv1/br-int/tap9"},
		{name: "by iface-id being the name", instance: "red-1",
			hosts: []Host{hv("hv1", port("br-int", "tap1", m1, "blue-1"), port("br-int", "tap9", m1, "red-1"))}, want: "hv1/br-int/tap9"},
		{name: "name shared by two networks, MAC decides", instance: "red/twin",
			hosts: []Host{hv("hv1", port("br-int", "tap1", "fa:16:3e:00:00:0a", "twin"), port("br-int", "tap2", "fa:16:3e:00:00:0b", "twin"))}, want: "hv1/br-int/tap2"},
		{name: "iface-id is the name, MAC another's", instance: "red/twin",
			hosts: []Host{hv("hv1", port("br-int", "tap1", "fa:16:3e:00:00:0a", "twin"))}, err: ErrNoEndpoint},
		{name: "by port, MAC not told", instance: "red-2", hosts: []Host{hv("hv1", port("br-int", "tap-r2", "", ""))}, want: "hv1/br-int/tap-r2"},
		{name: "port gone, MAC elsewhere on the host", instance: "red-2", hosts: []Host{hv("hv1", port("br-int", "tap1", m2, ""))}, err: ErrNoEndpoint},
		{name: "two with one MAC", instance: "blue-1", hosts: []Host{hv("hv1", port("br-int", "tap1", m1, "a"), port("br-int", "tap9", m1, "b"))}, err: ErrAmbiguous},
		{name: "MAC on another host only", instance: "blue-1", hosts: []Host{hv("hv1"), hv("hv2", port("br-int", "tap1", m1, ""))}, err: ErrNoEndpoint},
		{name: "no agent", instance: "blue-1", hosts: []Host{hv("hv2", port("br-int", "tap1", m1, ""))}, err: ErrNoAgent},
		{name: "any host", instance: "blue-3", hosts: []Host{hv("hv1"), hv("hv7", port("br-int", "tap3", m3, ""))}, want: "hv7/br-int/tap3"},
		{name: "any host, two of them", instance: "blue-3",
			hosts: []Host{hv("hv1", port("br-int", "tap3", m3, "")), hv("hv7", port("br-int", "tap3", m3, ""))}, err: ErrAmbiguous},
		{name: "any host, nowhere", instance: "blue-3", hosts: []Host{hv("hv1")}, err: ErrNoEndpoint},
		{name: "any host, no agents", instance: "blue-3", err: ErrNoAgent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			snap := NewSnapshot(mustParse(t, cloud), tt.hosts...)
			in, err := snap.Resolve(tt.instance)
			if err != nil {
				t.Fatal(err)
			}
			ep, err := snap.Endpoint(in)
			if !errors.Is(err, tt.err) {
				t.Fatalf("Endpoint: %v, want %v", err, tt.err)
			}
			if got := ep.Host + "/" + ep.Bridge + "/" + ep.Port; err == nil && got != tt.want {
				t.Errorf("Endpoint = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestTunnels(t *testing.T) {
	t.Parallel()
	hv1 := Host{Name: "hv1", Bridges: []*dyetracev1.Bridge{{Name: "br-int"}, {Name: "br-tun", Tunnels: []*dyetracev1.Tunnel{
		{Port: "gre-1", Ofport: 3, Type: "gre", LocalIp: "10.1.1.1", RemoteIp: "10.1.1.2"},
		{Port: "gnv", Ofport: 4, Type: "geneve", RemoteIp: "flow"},
		{Port: "vxlan-1", Ofport: 5, Type: "vxlan", LocalIp: "10.1.1.1", RemoteIp: "10.1.1.2"},
	}}}}
	snap := NewSnapshot(File{}, hv1, Host{Name: "hv2"})
	h, ok := snap.Host("hv1")
	if !ok {
		t.Fatal("hv1 is gone")
	}
	local := netip.MustParseAddr("10.1.1.1")
	if got := h.VTEPs(); len(got) != 1 || got[0] != local {
		t.Errorf("VTEPs = %v", got)
	}
	if got := h.Tunnels(); len(got) != 3 || got[1].Remote.IsValid() || got[2].Type != "vxlan" || got[2].OFPort != 5 {
		t.Errorf("Tunnels = %+v", got)
	}
	if got := snap.VTEPs(); len(got) != 1 || got[local] != "hv1" {
		t.Errorf("snapshot's VTEPs = %v", got)
	}
}

// closed says whether a change was announced.
func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestBook(t *testing.T) {
	t.Parallel()
	b := NewBook()
	empty := b.Snapshot()

	ch := b.Changed()
	b.SetFile(mustParse(t, cloud))
	if !closed(ch) {
		t.Error("SetFile: not announced")
	}
	if len(empty.Instances()) != 0 {
		t.Error("an old snapshot changed")
	}
	b.SetHost(Host{Name: "hv1", Connected: true, Endpoints: []*dyetracev1.Endpoint{port("br-int", "tap1", "fa:16:3e:00:00:01", "")}})
	before := b.Snapshot()

	ch = b.Changed()
	b.DropHost("hv1")
	if !closed(ch) {
		t.Error("DropHost: not announced")
	}
	if h, _ := before.Host("hv1"); !h.Connected {
		t.Error("an old snapshot changed")
	}
	h, ok := b.Snapshot().Host("hv1")
	if !ok || h.Connected || len(h.Endpoints) != 1 {
		t.Errorf("after DropHost: %+v, %v; want its last word, not connected", h, ok)
	}

	ch = b.Changed()
	b.DropHost("hv1") // again
	b.DropHost("hv9") // never was there
	if closed(ch) {
		t.Error("dropping a host that is gone was announced as a change")
	}
	if d := cmp.Diff([]string{"hv1", "hv2"}, b.Snapshot().ExpectedHosts()); d != "" {
		t.Errorf("ExpectedHosts: -want +got\n%s", d)
	}
}

// TestBookConcurrent: no change is lost to another, and a watcher that takes the channel first
// sees the last one.
func TestBookConcurrent(t *testing.T) {
	t.Parallel()
	b := NewBook()
	names := strings.Fields("a b c d e f g h")
	var writers sync.WaitGroup
	for _, name := range names {
		writers.Go(func() {
			for range 50 {
				b.SetHost(Host{Name: name, Connected: true})
				b.DropHost(name)
			}
			b.SetHost(Host{Name: name, Connected: true})
		})
	}
	for {
		ch := b.Changed()
		up := 0
		for _, h := range b.Snapshot().Hosts() {
			if h.Connected {
				up++
			}
		}
		if up == len(names) && writersDone(&writers, b, names) {
			return
		}
		<-ch
	}
}

// writersDone waits for the writers, once all hosts were seen up, and looks again.
func writersDone(writers *sync.WaitGroup, b *Book, names []string) bool {
	writers.Wait()
	for _, name := range names {
		if h, ok := b.Snapshot().Host(name); !ok || !h.Connected {
			return false
		}
	}
	return true
}
