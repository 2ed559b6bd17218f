package bgp

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
)

func give(f Feed, body []byte, now time.Time) error {
	var a rib.Ahead
	f.Read(&a, body)
	return f.Take(&a, now)
}

func TestTableFeed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	// The community attribute has 7 bytes, of which 8 make one.
	odd := slices.Concat([]byte{0, 0, 0, evpnUpdate[3] + 10}, evpnUpdate[4:], []byte{0xc0, 16, 7, 0, 2, 0, 0, 0, 0, 0})
	// The route is longer than the attribute.
	cut := slices.Clone(evpnUpdate)
	cut[len(cut)-18]++
	for _, tt := range []struct {
		name   string
		o      rib.PeerOptions
		body   []byte
		want   error
		routes int
	}{
		{"sound", rib.PeerOptions{}, evpnUpdate, nil, 1},
		{"malformed", rib.PeerOptions{}, odd, rib.ErrWithdraw, 1}, // as a claim
		{"beyond repair", rib.PeerOptions{}, cut, rib.ErrReset, 0},
		{"another target", rib.PeerOptions{RTs: []wire.RouteTarget{0x0002_fc00_0000_0064}}, evpnUpdate, nil, 0},
		{"another family", rib.PeerOptions{Families: []wire.Family{1<<8 | 128}}, evpnUpdate, nil, 1}, // the session keeps it out
	} {
		f := LearnInto(rib.New(rib.Options{}))("10.0.0.1", tt.o)
		f.Up(now, false)
		if err := give(f, tt.body, now); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if n := f.Routes(); n != tt.routes {
			t.Errorf("%s: %d routes, want %d", tt.name, n, tt.routes)
		}
	}
	f := LearnInto(rib.New(rib.Options{}))("10.0.0.1", rib.PeerOptions{MaxRoutes: 1})
	f.Up(now, false)
	second := slices.Clone(evpnUpdate)
	second[len(second)-1] = 2
	if err := errors.Join(give(f, evpnUpdate, now), give(f, second, now)); !errors.Is(err, rib.ErrLimit) {
		t.Errorf("two routes of one: %v", err)
	}
}

// A table has the next hops that a feed was told last, also where the session is made anew.
func TestTableOptions(t *testing.T) {
	t.Parallel()
	now := time.Now()
	table := rib.New(rib.Options{})
	learn := LearnInto(table)
	told := func() (hops []netip.Addr, state rib.State) { return table.Snapshot().Flood(rib.VNI(100)) }
	allow := func(s string) rib.PeerOptions {
		return rib.PeerOptions{NextHops: []netip.Prefix{netip.MustParsePrefix(s)}}
	}
	tagged := slices.Clone(evpnUpdate)
	tagged[len(tagged)-6] = 100 // by its Ethernet tag the route is in VNI 100
	end := []byte{0, 0, 0, 6, 0x80, 15, 3, 0, 25, 70}
	f := learn("10.0.0.1", allow("10.9.0.0/16"))
	f.Up(now, false)
	give(f, tagged, now)
	give(f, end, now)
	if hops, state := told(); len(hops) > 0 || state != rib.Unknown {
		t.Errorf("a next hop that the peer may not name: %v, %v", hops, state)
	}
	f.SetOptions(allow("10.0.0.0/16"), now)
	if hops, state := told(); len(hops) != 1 || state != rib.Present {
		t.Errorf("the next hop was let in: %v, %v", hops, state)
	}
	f.Down(now, true)
	learn("10.0.0.1", allow("10.9.0.0/16"))
	if hops, _ := told(); len(hops) > 0 {
		t.Errorf("options of a new session were not taken: %v", hops)
	}
	if !table.Peer("10.0.0.1", rib.PeerOptions{}).SetOptions(rib.PeerOptions{Default: wire.EncapMPLS}, now) {
		t.Error("no refresh for another default")
	}
}
