package verdict

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

type hosts = map[string]*inventory.Host

// windowed changes one hook's window.
func windowed(host, bridge string, change func(*Window)) func(*Evidence) {
	return func(e *Evidence) {
		w := e.Hooks[Place{host, bridge}]
		change(&w)
		e.Hooks[Place{host, bridge}] = w
	}
}

func reinstalled(w *Window) { w.After.Epoch++ }
func lossy(w *Window)       { w.After.Lost += 3 }
func notBefore(w *Window)   { w.Before.Live, w.Before.Reason = false, "flows were deleted" }
func notAfter(w *Window)    { w.After.Live = false }
func unaudited(w *Window)   { w.After = nil }

// answerFrom has the answers come in by a tunnel from that address.
func answerFrom(vtep string) func(*Evidence) {
	return func(e *Evidence) {
		for _, a := range e.Attempts {
			for i := range a.Seen {
				if s := &a.Seen[i]; s.TunSrc.IsValid() && e.Path.Points[s.Point].Direction == plan.Reply {
					s.TunSrc = netip.MustParseAddr(vtep)
				}
			}
		}
	}
}

// noRoom is a request for whose reply the bridge of that point had no room.
func noRoom(point int) func(*Evidence) {
	return func(e *Evidence) {
		for _, a := range e.Attempts {
			for i := range a.Seen {
				a.Seen[i].NoReply = a.Seen[i].NoReply || a.Seen[i].Point == point
			}
		}
	}
}

func gone(host string) func(*Evidence) {
	return func(e *Evidence) { e.Gone = map[string]string{host: "its agent was cut off at 10:42"} }
}

// quiet has a packet take up to 750 ms from one point to the next, and probes be watched for so long.
func quiet(watched ...time.Duration) func(*Evidence) {
	return func(e *Evidence) {
		e.Patience = 750 * time.Millisecond
		for i, d := range watched {
			e.Attempts[i].Quiet = d
		}
	}
}

func flow(bridge string, table, priority uint32, match string) *Flow {
	return &Flow{Bridge: bridge, Table: table, Priority: priority, Match: match, Actions: "drop", Cookie: 0xc0ffee}
}

// onward is a flow that sends packets on, to a port that may be gone.
func onward(bridge string, table, priority uint32, match string) *Flow {
	f := flow(bridge, table, priority, match)
	f.Actions = "output:7"
	return f
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const (
		crossing = "blue-1 blue-3"  // 8 points: hv1 0 1, hv3 2 3, answer hv3 4 5, hv1 6 7
		routed   = "blue-1 green-3" // the same, routed
		local    = "blue-1 blue-2"  // 2 points on hv1
		shown    = "blue-1 blue-4"  // hv1 0 1, hv4 2 and 3 as delivered, answer hv4 4, hv1 5 6
		shows    = "blue-4 blue-1"  // hv4 0, hv1 1 2, answer hv1 3 4, hv4 5 and 6 as delivered
	)
	drop := flow("br-int", 60, 90, "ip,nw_dst=10.0.1.13")
	tests := []struct {
		name    string
		pair    string
		scheme  stain.Scheme
		noTouch bool // only the points of the way there
		net     []func(hosts)
		probes  []string
		impair  []func(*Evidence)
		explain *Explanation
		want    string
	}{
		// Seen all the way, or at its end.
		{name: "whole", pair: crossing, probes: []string{"01234567"}, want: "healthy | - |  | "},
		{name: "whole on one host", pair: local, probes: []string{"01"}, want: "healthy | - |  | "},
		{name: "whole with delivery", pair: shown, probes: []string{"0123456"}, want: "healthy | - |  | "},
		{name: "out of order", pair: crossing, probes: []string{"67012345"}, want: "healthy | - |  | "},
		{name: "the end proves the way", pair: crossing, probes: []string{"0134567"},
			want: "healthy samples | - |  | passed hv3/br-tun from-tunnel without a sample"},
		{name: "the end proves the way, destination blind", pair: crossing, probes: []string{"0167"}, impair: []func(*Evidence){gone("hv3")},
			want: "healthy samples | - |  | passed 4 points without a sample, hv3/br-tun from-tunnel first"},
		{name: "the end proves the way, destination unhooked", pair: crossing, net: []func(hosts){refused("hv3", "br-int"), refused("hv3", "br-tun")}, probes: []string{"0167"},
			want: "healthy | - |  | "},
		{name: "one of two", pair: crossing, probes: []string{"01", "01234567"},
			want: "healthy loss | - |  | 1 of 2 probes lost, between hv1/br-tun to-tunnel and hv3/br-tun from-tunnel"},
		{name: "one of three, one unclear", pair: crossing, probes: []string{"01", "no:full", "01234567"}, impair: []func(*Evidence){gone("hv3")},
			want: "healthy unseen | - |  | 2 of 3 probes could not be followed"},
		{name: "one failed to inject", pair: crossing, probes: []string{"no:full", "01234567"},
			want: "healthy unseen | - |  | 1 of 2 probes could not be followed"},
		{name: "duplicate", pair: crossing, probes: []string{"012234567"},
			want: "healthy duplicate | - |  | seen more than once at hv3/br-tun from-tunnel: duplicated before it"},
		{name: "flooded", pair: crossing, probes: []string{"01234567 @hv2:fwd"},
			want: "healthy duplicate | - |  | also seen at hv2/br-int from-tunnel, off its way"},
		{name: "source without link", pair: crossing, net: []func(hosts){linkDown("hv1", "tap-b1")}, probes: []string{"01234567"},
			want: "silent guest-down | hv1/br-int from-tunnel → hv1/br-int to-instance | hv1 | the answer came back to hv1, but the link of tap-b1 is down: blue-1 is off, or its interface is"},

		// Lost, or late? All that count as lost must have had their time, and not the one that came farthest alone.
		{name: "all had their time", pair: crossing, probes: []string{"01", "0", "01"}, impair: []func(*Evidence){quiet(time.Second, time.Second, time.Second)},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); 1 of 3 probes lost earlier, after hv1/br-int from-instance | ask hv1/br-int"},
		{name: "others may be late", pair: crossing, probes: []string{"01", "0", "01"}, impair: []func(*Evidence){quiet(time.Second, 100*time.Millisecond, time.Second)},
			want: "unknown unseen | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); 1 of 3 probes lost earlier, after hv1/br-int from-instance; or it is late: it was watched for 100ms after it was seen last, and 750ms is what it may take | ask hv1/br-int"},

		// Answered, but by whom?
		{name: "impostor", pair: crossing, probes: []string{"0167 @hv4:fwd @hv4:reply"},
			want: "faulty impostor | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv4/br-int from-instance, but blue-3 is on hv3: stale tunnel, or its address is used twice"},
		{name: "impostor, told by the tunnel", pair: crossing, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.1.1.2")},
			want: "faulty impostor | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv2 (tunnel from 10.1.1.2), but blue-3 is on hv3: stale tunnel, or its address is used twice"},
		{name: "impostor or router, destination blind", pair: crossing, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.1.1.2"), gone("hv3")},
			want: "unknown unseen | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv2 (tunnel from 10.1.1.2), and whether that is blue-3 is not known: nothing of hv3 could be seen"},
		{name: "unknown tunnel address, destination did not see it", pair: crossing, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.9.9.9")},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered, but not by way of hv3, where blue-3 should be"},
		{name: "tunnel not seen, destination did not see it", pair: crossing, probes: []string{"017"},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered, but not by way of hv3, where blue-3 should be"},
		{name: "tunnel not seen, destination blind", pair: crossing, probes: []string{"017"}, impair: []func(*Evidence){gone("hv3")},
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered, but nothing shows that it was blue-3 of hv3 (hv3: its agent was cut off at 10:42)"},
		{name: "the tunnel's source stands for the destination", pair: crossing, probes: []string{"0167"},
			want: "healthy samples | - |  | passed 4 points without a sample, hv3/br-tun from-tunnel first"},
		{name: "impostor, and the inventory may be wrong", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, probes: []string{"0167 @hv4:reply"},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv4/br-int from-instance, and whether that is blue-3 is not known: tap-b3 is not on br-int of hv3"},

		// Never entered.
		{name: "port absent when injected", pair: crossing, probes: []string{"absent"},
			want: "faulty port | before hv1/br-int from-instance | hv1 | tap-b1 is not on br-int of hv1"},
		{name: "port absent when planned", pair: crossing, net: []func(hosts){unplug("hv1", "tap-b1")},
			want: "faulty port | before hv1/br-int from-instance | hv1 | tap-b1 is not on br-int of hv1"},
		{name: "source's agent not connected", pair: crossing, net: []func(hosts){disconnected("hv1")},
			want: "unknown agent | - | hv1 | the agent of hv1 is not connected"},
		{name: "source's hook refused", pair: crossing, net: []func(hosts){refused("hv1", "br-int")},
			want: "unknown hook | - | hv1 | hv1/br-int: no hook: no free mark"},
		{name: "no probe", pair: crossing, want: "unknown injection | - | hv1 | no probe was sent"},
		{name: "injection failed", pair: crossing, probes: []string{"no:socket_is_full"},
			want: "unknown injection | before hv1/br-int from-instance | hv1 | hv1 could not inject: socket is full"},
		{name: "agent fell silent", pair: crossing, probes: []string{"mute"}, impair: []func(*Evidence){gone("hv1")},
			want: "unknown agent | before hv1/br-int from-instance | hv1 | hv1 did not say that the probe left (its agent was cut off at 10:42)"},
		{name: "own hook did not see it", pair: crossing, probes: []string{""},
			want: "unknown injection | before hv1/br-int from-instance | hv1 | hv1 injected it, but its own hook on br-int did not see it"},
		{name: "own hook was not there", pair: crossing, probes: []string{""}, impair: []func(*Evidence){windowed("hv1", "br-int", notBefore)},
			want: "unknown hook | before hv1/br-int from-instance | hv1 | hv1 injected it, but its own hook on br-int did not see it (hv1/br-int: hook not live before the probe (flows were deleted))"},

		// Lost on the source's host.
		{name: "before br-tun", pair: crossing, probes: []string{"0"},
			want: "unknown unexplained | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | no sample after hv1/br-int from-instance: lost on hv1 before br-tun; whether by a fault or by a security rule is not known: what its flows do with it was not explained | ask hv1/br-int!"},
		{name: "dropped by a flow", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: drop},
			want: "faulty flow | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: dropped by br-int table 60, priority 90, ip,nw_dst=10.0.1.13 (cookie 0xc0ffee)"},
		{name: "dropped by a security rule", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 72, 50, "ct_state=+inv+trk,reg5=0x1")},
			want: "policy security-rule | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: denied by a security rule: br-int table 72, priority 50, ct_state=+inv+trk,reg5=0x1 (cookie 0xc0ffee)"},
		{name: "dropped, nobody knows by what", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped},
			want: "faulty flow | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: dropped after hv1/br-int from-instance"},
		{name: "flows would pass it now", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty switch | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | no sample after hv1/br-int from-instance: lost on hv1 before br-tun, though its flows now send it into tunnel gre-hv3 (to 10.1.2.3)"},
		{name: "delivered on the wrong host", pair: crossing, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Delivered, Port: "tap-x"},
			want: "faulty misdirected | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 delivers it to its own port tap-x, but blue-3 is on hv3"},
		{name: "delivered on the wrong host, on its own", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Delivered, Port: "tap-x"},
			want: "faulty misdirected | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1 delivers it to its own port tap-x, but blue-3 is on hv3"},
		{name: "sent away from its own host", pair: local, net: []func(hosts){taps}, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty stale-vtep | hv1/br-int from-instance → hv1/br-int to-instance | hv1 | hv1 sends it into tunnel gre-hv3 (to 10.1.2.3), but blue-2 is here, at tap-b2"},
		{name: "explanation contradicts the samples", pair: crossing, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-tun", 20, 0, "")},
			want: "faulty switch | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | no sample after hv1/br-int from-instance: lost on hv1 before br-tun; further on, br-tun table 20, priority 0, any packet (cookie 0xc0ffee) drops it now"},
		{name: "patch gone at the source", pair: crossing, net: []func(hosts){noPatch("hv1")}, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: onward("br-int", 60, 3, "")},
			want: "faulty port | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: dropped by br-int table 60, priority 3, any packet (cookie 0xc0ffee); br-int of hv1 has no patch port to br-tun, where the tunnels are"},
		{name: "patch gone, not explained", pair: crossing, net: []func(hosts){noPatch("hv1")}, probes: []string{"0"},
			want: "faulty port | hv1/br-int from-instance → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-int from-instance: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3) or beside it, none at hv3/br-tun from-tunnel either (hv1/br-tun: its hook does not sample to-tunnel); br-int of hv1 has no patch port to br-tun, where the tunnels are | ask hv1/br-int!"},

		// What it bore as it came to the host is not known where nothing saw it come in.
		{name: "come in unseen", pair: crossing, probes: []string{"013"}, impair: []func(*Evidence){windowed("hv3", "br-tun", lossy)},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained (hv3/br-tun: agent lost 3 samples meanwhile)"},
		{name: "come in by a bridge without a hook", pair: crossing, net: []func(hosts){refused("hv3", "br-tun")}, probes: []string{"013"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained (hv3/br-tun: no hook: no free mark)"},
		{name: "come in unseen, short of its port", pair: crossing, net: []func(hosts){taps}, probes: []string{"013"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int to-instance | hv3 | no sample after hv3/br-int from-tunnel: lost on hv3 before tap-b3; whether by a fault or by a security rule is not known: what its flows do with it was not explained (hv3/br-tun did not see it come in)"},
		{name: "come in unseen, another seen", pair: crossing, probes: []string{"013", "012"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained; 1 of 2 probes lost earlier, after hv3/br-tun from-tunnel | ask hv3/br-tun!"},
		{name: "sent unseen", pair: crossing, probes: []string{"1"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3) | ask hv1/br-int"},
		{name: "sent unseen, flows that have changed", pair: crossing, probes: []string{"1"}, explain: &Explanation{Point: 1, Outcome: Dropped, Flow: drop},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); its flows, asked afterwards, drop it before (br-int table 60, priority 90, ip,nw_dst=10.0.1.13 (cookie 0xc0ffee)), so they know more than was asked, or have changed"},

		// Lost in the tunnel.
		{name: "tunnel, explained when it was not seen as far", pair: crossing, probes: []string{"01"}, explain: &Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.4", TunnelID: 1001},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.2.4 (hv4), but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel"},
		{name: "tunnel, not explained", pair: crossing, probes: []string{"01"}, explain: &Explanation{Point: 1, Error: "ovs-appctl: timeout"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); what its flows do with it could not be explained: ovs-appctl: timeout"},
		{name: "tunnel", pair: crossing, probes: []string{"01"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3) | ask hv1/br-int"},
		{name: "tunnel to the wrong host", pair: crossing, probes: []string{"01 @hv4:fwd"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.4", TunnelID: 1001},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.2.4 (hv4), but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel; seen at hv4/br-int from-tunnel, which does not have blue-3"},
		{name: "tunnel to nowhere", pair: crossing, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.9.9.9", TunnelID: 1001},
			want: "faulty tunnel | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.9.9.9 (no host's tunnel address that we know), but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel"},
		{name: "wrong key", pair: routed, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 9999},
			want: "faulty vni | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3) with tunnel key 9999, but the key of network green is 1002"},
		{name: "underlay", pair: crossing, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes"},
		{name: "receiver has no tunnel back", pair: crossing, net: []func(hosts){remote("hv3", "gre-hv1", "10.1.9.9")}, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty tunnel | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | hv3 has no gre tunnel port from hv1 (10.1.1.1)"},
		{name: "sent astray, seen", pair: crossing, probes: []string{"01 @hv4:fwd"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); seen at hv4/br-int from-tunnel, which does not have blue-3 | ask hv1/br-int"},
		{name: "answer lost in the tunnel", pair: crossing, probes: []string{"012345"},
			want: "faulty between-hosts | hv3/br-tun to-tunnel → hv1/br-tun from-tunnel | hv3 | no sample after hv3/br-tun to-tunnel: lost in the tunnel hv3 → hv1 (10.1.2.3 → 10.1.1.1) | ask hv3/br-int"},

		// Lost on the destination's host.
		{name: "dropped coming in", pair: crossing, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-tun", 4, 0, "")},
			want: "faulty vni | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv3 | hv3: dropped by br-tun table 4, priority 0, any packet (cookie 0xc0ffee); no flow there takes key 1001 of network blue"},
		{name: "dropped coming in, by name", pair: crossing, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-tun", 4, 10, "tun_id=0x3e9")},
			want: "faulty flow | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv3 | hv3: dropped by br-tun table 4, priority 10, tun_id=0x3e9 (cookie 0xc0ffee)"},
		{name: "dropped coming in, whatever the key", pair: crossing, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-tun", 0, 0, "")},
			want: "faulty flow | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv3 | hv3: dropped by br-tun table 0, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "patch gone at the destination", pair: crossing, net: []func(hosts){noPatch("hv3")}, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: onward("br-tun", 4, 1, "tun_id=0x3e9")},
			want: "faulty port | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv3 | hv3: dropped by br-tun table 4, priority 1, tun_id=0x3e9 (cookie 0xc0ffee); br-int of hv3 has no patch port to br-tun, where the tunnels are"},
		{name: "silent guest", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer"},
		{name: "silent guest, flooded to", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "patch-tun, tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer"},
		{name: "guest without link", pair: crossing, net: []func(hosts){linkDown("hv3", "tap-b3")}, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-down | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | link of tap-b3 on hv3 is down: blue-3 is off, or its interface is"},
		{name: "guest without link, not explained", pair: crossing, net: []func(hosts){linkDown("hv3", "tap-b3")}, probes: []string{"0123"}, explain: &Explanation{Point: 3, Error: "ovs-appctl: timeout"},
			want: "silent guest-down | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | link of tap-b3 on hv3 is down: blue-3 is off, or its interface is"},
		{name: "guest or network", pair: crossing, probes: []string{"0123"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained | ask hv3/br-tun!"},
		{name: "guest or network, explanation failed", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Error: "ovs-appctl: timeout"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it could not be explained: ovs-appctl: timeout"},
		{name: "explained when it was not seen as far", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer"},
		{name: "explanation of another host is none", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 1, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unexplained | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | lost after hv3/br-int from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained | ask hv3/br-tun!"},
		{name: "denied coming in", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "policy security-rule | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3: denied by a security rule: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "dropped before the guest", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Dropped, Flow: drop},
			want: "faulty flow | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3: dropped by br-int table 60, priority 90, ip,nw_dst=10.0.1.13 (cookie 0xc0ffee)"},
		{name: "delivered to another", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-g3"},
			want: "faulty misdirected | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3 delivers it to tap-g3, but blue-3 is at tap-b3"},
		{name: "sent away again", pair: crossing, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Tunnelled, Port: "gre-hv4", TunnelRemote: "10.1.2.4", TunnelID: 1001},
			want: "faulty stale-vtep | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3 sends it into tunnel gre-hv4 (to 10.1.2.4), but blue-3 is here, at tap-b3"},
		{name: "tap off", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, probes: []string{"0123"},
			want: "faulty port | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | tap-b3 is not on br-int of hv3 | ask hv3/br-tun"},
		{name: "tap off, and the hook installed anew for that", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, probes: []string{"0123"},
			impair: []func(*Evidence){windowed("hv3", "br-int", reinstalled), windowed("hv3", "br-tun", reinstalled)},
			want:   "faulty port | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | tap-b3 is not on br-int of hv3 | ask hv3/br-tun"},
		{name: "seen delivered, no answer", pair: shown, probes: []string{"0123"},
			want: "silent guest-silent | hv4/br-int to-instance → hv4/br-int from-instance | hv4 | delivered to tap-b4 of hv4, but blue-4 does not answer (seen leaving by its port)"},
		{name: "not delivered", pair: shown, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: drop},
			want: "faulty flow | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | hv4: dropped by br-int table 60, priority 90, ip,nw_dst=10.0.1.13 (cookie 0xc0ffee)"},
		{name: "answer dropped", pair: crossing, probes: []string{"01234"}, explain: &Explanation{Point: 4, Outcome: Dropped, Flow: flow("br-int", 60, 95, "ip,nw_src=10.0.1.13")},
			want: "faulty flow | hv3/br-int from-instance → hv3/br-tun to-tunnel | hv3 | hv3: dropped by br-int table 60, priority 95, ip,nw_src=10.0.1.13 (cookie 0xc0ffee)"},
		{name: "answer lost on the source's host", pair: crossing, probes: []string{"0123456"},
			want: "faulty switch | hv1/br-tun from-tunnel → hv1/br-int from-tunnel | hv1 | no sample after hv1/br-tun from-tunnel: lost on hv1 before br-int | ask hv1/br-tun"},
		{name: "silent on one host", pair: local, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Delivered, Port: "tap-b2"},
			want: "silent guest-silent | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | delivered to tap-b2 of hv1, but blue-2 does not answer"},
		{name: "dropped on one host", pair: local, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: drop},
			want: "faulty flow | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | hv1: dropped by br-int table 60, priority 90, ip,nw_dst=10.0.1.13 (cookie 0xc0ffee)"},

		// We could not see.
		{name: "hook reinstalled", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){windowed("hv3", "br-tun", reinstalled), windowed("hv3", "br-int", lossy), windowed("hv1", "br-tun", notAfter), windowed("hv1", "br-int", unaudited)},
			want: "unknown hook | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3/br-tun: hook installed anew meanwhile; hv3/br-int: agent lost 3 samples meanwhile; hv1/br-tun: hook not live after the probe; and 1 more"},
		{name: "one point blind, the next proves", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){windowed("hv3", "br-tun", reinstalled)},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-int from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3) or beside it, none at hv3/br-int from-tunnel either (hv3/br-tun: hook installed anew meanwhile) | ask hv1/br-int"},
		{name: "one point blind, the tunnel is right", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){windowed("hv3", "br-tun", reinstalled)}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-int from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, but hv3/br-int from-tunnel did not see it: lost on the way; UDP between the two could not be tried: the agent of hv1 knows no underlay probes (hv3/br-tun: hook installed anew meanwhile)"},
		{name: "destination blind, source deaf", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")},
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42 | ask hv1/br-int"},
		{name: "destination blind, source drops", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: &Explanation{Point: 1, Outcome: Dropped, Flow: flow("br-tun", 20, 2, "dl_dst=fa:16:3e:00:01:13")},
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42; asked afterwards, hv1 drops it: br-tun table 20, priority 2, dl_dst=fa:16:3e:00:01:13 (cookie 0xc0ffee)"},
		{name: "destination blind, source sends it astray", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv4", TunnelRemote: "10.1.2.4"},
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42; asked afterwards, hv1 sends it to 10.1.2.4 (hv4), but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel"},
		{name: "destination blind, source does right", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3"},
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42"},
		{name: "destination's agent gone, seen before", pair: crossing, probes: []string{"0123"}, impair: []func(*Evidence){gone("hv3")},
			want: "unknown agent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42"},
		{name: "answer may have gone unseen", pair: crossing, probes: []string{"0123"}, impair: []func(*Evidence){windowed("hv3", "br-int", lossy), windowed("hv3", "br-tun", lossy)}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown samples | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: hv3/br-int: agent lost 3 samples meanwhile; hv3/br-tun: agent lost 3 samples meanwhile"},
		{name: "nothing audited", pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){func(e *Evidence) { e.Hooks = nil }},
			want: "unknown hook | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3/br-tun: hook not audited before the probe; hv3/br-int: hook not audited before the probe; hv1/br-tun: hook not audited before the probe; and 1 more"},
		{name: "source cannot see answers", pair: crossing, net: []func(hosts){noPatch("hv1"), refused("hv1", "br-tun")}, probes: []string{"012345"},
			want: "unknown unseen | hv3/br-tun to-tunnel → hv1/br-tun from-tunnel | hv1 | seen up to hv3/br-tun to-tunnel; beyond, we could not see: hv1/br-tun: no hook: no free mark; hv1/br-int: its hook does not sample from-tunnel"},

		// Several attempts.
		{name: "the furthest is judged", pair: crossing, probes: []string{"0", "0123", "01"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer; 2 of 3 probes lost earlier, after hv1/br-int from-instance"},
		{name: "a blocked pair's earlier probe counts", pair: crossing, probes: []string{"no:full", "absent", "01"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3) | ask hv1/br-int"},
		{name: "absent before full", pair: crossing, probes: []string{"no:full", "absent"},
			want: "faulty port | before hv1/br-int from-instance | hv1 | tap-b1 is not on br-int of hv1"},

		// An answer without the stain's ToS, for which the destination's bridge was not armed.
		{name: "maybe answered", pair: crossing, probes: []string{"bare 0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen"},
		{name: "maybe answered, not explained", pair: crossing, probes: []string{"bare 0123"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen | ask hv3/br-tun"},
		{name: "maybe answered, though its flows drop it", pair: crossing, probes: []string{"bare 0123"}, explain: &Explanation{Point: 3, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen; asked afterwards, hv3 drops it: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "maybe answered, its link is down", pair: crossing, net: []func(hosts){linkDown("hv3", "tap-b3")}, probes: []string{"bare 0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen; link of tap-b3 on hv3 is down: blue-3 is off, or its interface is"},
		{name: "nobody to answer", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, probes: []string{"bare 0123"},
			want: "faulty port | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | tap-b3 is not on br-int of hv3 | ask hv3/br-tun"},
		{name: "delivered, maybe answered", pair: shown, probes: []string{"bare 0123"},
			want: "unknown unseen | hv4/br-int to-instance → hv4/br-int from-instance | hv4 | seen up to hv4/br-int to-instance; beyond, we could not see: an answer without the stain's ToS would have passed unseen"},
		{name: "maybe answered, then armed", pair: crossing, probes: []string{"bare 0123", "0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer"},
		{name: "maybe answered, then armed and lost short of it", pair: crossing, probes: []string{"bare 0123", "01"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen; 1 of 2 probes lost earlier, after hv1/br-tun to-tunnel"},
		{name: "maybe answered, then armed and seen", pair: crossing, probes: []string{"bare 0123", "01234567"},
			want: "healthy unseen | - |  | 1 of 2 probes could not be followed"},
		{name: "the forward way needs no arming", pair: crossing, probes: []string{"bare 012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-tun", 4, 0, "")},
			want: "faulty vni | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv3 | hv3: dropped by br-tun table 4, priority 0, any packet (cookie 0xc0ffee); no flow there takes key 1001 of network blue"},
		{name: "nor does an answer that bears the stain", pair: crossing, probes: []string{"bare 012345"},
			want: "faulty between-hosts | hv3/br-tun to-tunnel → hv1/br-tun from-tunnel | hv3 | no sample after hv3/br-tun to-tunnel: lost in the tunnel hv3 → hv1 (10.1.2.3 → 10.1.1.1) | ask hv3/br-int"},
		{name: "the source's port knows it", pair: shows, probes: []string{"bare 0126"},
			want: "healthy unseen | - |  | the answer was not recognised all the way: it does not bear the stain's ToS"},
		{name: "the source's port did not see it", pair: shows, probes: []string{"bare 012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "policy security-rule | hv1/br-int from-tunnel → hv1/br-int from-instance | hv1 | hv1: denied by a security rule: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "the source's port did not see it, and it was delivered", pair: shows, probes: []string{"bare 012"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-b1"},
			want: "unknown unseen | hv1/br-int from-tunnel → hv4/br-int to-instance | hv1 | lost after hv1/br-int from-tunnel; its flows deliver it to tap-b1, which tells too little (an answer without the stain's ToS would have passed unseen)"},
		{name: "armed by a hook that was not there all the time", pair: crossing, probes: []string{"0123"}, impair: []func(*Evidence){windowed("hv3", "br-int", reinstalled)}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown hook | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: hv3/br-int: hook installed anew meanwhile"},

		{name: "one that bore the stain at the end bore it all the way", pair: crossing, probes: []string{"bare 01237"},
			want: "healthy samples | - |  | passed 3 points without a sample, hv3/br-int from-instance first"},
		{name: "flows do not explain what left for the guest", pair: crossing, net: []func(hosts){taps}, probes: []string{"bare 01234"}, explain: &Explanation{Point: 4, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "unknown unseen | hv3/br-int to-instance → hv1/br-int to-instance | hv3 | lost after hv3/br-int to-instance, by the network or by blue-3 itself: it left for blue-3, and whether that answered was not seen; an answer without the stain's ToS would have passed unseen"},

		// Echo requests.
		{name: "icmp: no room anywhere, the source's port knows replies by their ToS", scheme: stain.ICMP, pair: shows, probes: []string{"full 012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "unknown unseen | hv1/br-int from-tunnel → hv1/br-int from-instance | hv1 | seen up to hv1/br-int from-tunnel; beyond, we could not see: the switch of hv1 did not promise to know a reply without the stain's ToS; asked afterwards, hv1 drops it: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "icmp: who answered was not recognised there", scheme: stain.ICMP, pair: crossing, net: []func(hosts){noPatch("hv3"), refused("hv3", "br-tun")}, probes: []string{"017"},
			want: "unknown unseen | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered, but nothing shows that it was blue-3 of hv3 (hv3/br-tun: no hook: no free mark)"},
		{name: "icmp: whole", scheme: stain.ICMP, pair: crossing, probes: []string{"01234567"}, want: "healthy | - |  | "},
		{name: "icmp: reflected, though no switch had room", scheme: stain.ICMP, pair: crossing, probes: []string{"full 01234567"}, want: "healthy | - |  | "},
		{name: "icmp: silent guest", scheme: stain.ICMP, pair: crossing, probes: []string{"bare 0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer the echo request"},
		{name: "icmp: denied", scheme: stain.ICMP, pair: crossing, probes: []string{"bare 0123"}, explain: &Explanation{Point: 3, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "policy security-rule | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3: denied by a security rule: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "icmp: no room", scheme: stain.ICMP, pair: crossing, probes: []string{"full 0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | seen up to hv3/br-int from-tunnel; beyond, we could not see: the switch of hv3 did not promise to know a reply without the stain's ToS"},
		{name: "icmp: no room, then some", scheme: stain.ICMP, pair: crossing, probes: []string{"full 0123", "0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer the echo request"},
		{name: "icmp: no room at the destination only", scheme: stain.ICMP, pair: crossing, probes: []string{"0123"}, impair: []func(*Evidence){noRoom(3)}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown unseen | hv3/br-int from-tunnel → hv1/br-int from-tunnel | hv3 | lost after hv3/br-int from-tunnel; its flows deliver it to tap-b3, which tells too little (the switch of hv3 did not promise to know a reply without the stain's ToS)"},
		{name: "icmp: no room at the destination, the source's bridge knows the reply", scheme: stain.ICMP, pair: crossing, probes: []string{"01237"}, impair: []func(*Evidence){noRoom(3)},
			want: "healthy unseen | - |  | the answer was not recognised all the way: it does not bear the stain's ToS"},
		{name: "icmp: the flow that knows the reply went with its hook", scheme: stain.ICMP, pair: crossing, probes: []string{"0123"}, impair: []func(*Evidence){windowed("hv3", "br-int", reinstalled)}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "unknown hook | hv3/br-int from-tunnel → hv1/br-int from-tunnel | hv3 | lost after hv3/br-int from-tunnel; its flows deliver it to tap-b3, which tells too little (hv3/br-int: hook installed anew meanwhile)"},
		{name: "icmp: destination blind, source drops", scheme: stain.ICMP, pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: &Explanation{Point: 1, Outcome: Dropped, Flow: flow("br-tun", 20, 2, "dl_dst=fa:16:3e:00:01:13")},
			want: "faulty flow | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1: dropped by br-tun table 20, priority 2, dl_dst=fa:16:3e:00:01:13 (cookie 0xc0ffee)"},
		{name: "icmp: destination blind, source sends it astray", scheme: stain.ICMP, pair: crossing, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv4", TunnelRemote: "10.1.2.4"},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.2.4 (hv4), but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel"},
		{name: "icmp: the destination's request was not shown", scheme: stain.ICMP, pair: crossing, net: []func(hosts){noPatch("hv3")}, probes: []string{"012"},
			want: "unknown unexplained | hv3/br-tun from-tunnel → hv1/br-int from-tunnel | hv3 | lost after hv3/br-tun from-tunnel, by the network or by blue-3 itself: what its flows do with it was not explained; hv3/br-int: its hook does not sample from-tunnel; hv3/br-int did not show the request, so a reply without the stain's ToS would have passed unseen; hv3/br-tun: its hook does not sample to-tunnel; br-int of hv3 has no patch port to br-tun, where the tunnels are | ask hv3/br-tun!"},

		// No-touch: one way, up to where the packet leaves for the guest.
		// Left by another port than the destination's.
		{name: "left by another port", pair: shown, probes: []string{"012 @hv4:to"},
			want: "unknown unexplained | hv4/br-int from-tunnel → hv4/br-int from-instance | hv4 | lost after hv4/br-int from-tunnel, by the network or by blue-4 itself: what its flows do with it was not explained; hv4/br-int: it left by OpenFlow port 9, not by 5; seen at hv4/br-int to-instance, off its way | ask hv4/br-int!"},
		{name: "left by another port, not armed", pair: shown, probes: []string{"bare 012 @hv4:to"},
			want: "unknown misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: it left by OpenFlow port 9, not by 5; an answer without the stain's ToS would have passed unseen | ask hv4/br-int!"},
		{name: "left by another port, not armed, as explained", pair: shown, probes: []string{"bare 012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-x"},
			want: "faulty misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | hv4 delivers it to tap-x, but blue-4 is at tap-b4; seen at hv4/br-int to-instance, off its way"},
		{name: "left by another port, also of its own", pair: shown, probes: []string{"bare 012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-x, tap-b4"},
			want: "unknown misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: it left by OpenFlow port 9, not by 5; an answer without the stain's ToS would have passed unseen"},
		{name: "left by another port, explained", pair: shown, probes: []string{"012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-b4"},
			want: "unknown unexplained | hv4/br-int from-tunnel → hv4/br-int from-instance | hv4 | lost after hv4/br-int from-tunnel, by the network or by blue-4 itself: what its flows, asked afterwards, do with it is not what they did; hv4/br-int: it left by OpenFlow port 9, not by 5; seen at hv4/br-int to-instance, off its way"},
		{name: "left by another port, as explained", pair: shown, probes: []string{"012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-x"},
			want: "faulty misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | hv4 delivers it to tap-x, but blue-4 is at tap-b4; seen at hv4/br-int to-instance, off its way"},
		{name: "left by another port, dropped now", pair: shown, probes: []string{"012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: drop},
			want: "unknown unexplained | hv4/br-int from-tunnel → hv4/br-int from-instance | hv4 | lost after hv4/br-int from-tunnel, by the network or by blue-4 itself: what its flows, asked afterwards, do with it is not what they did; hv4/br-int: it left by OpenFlow port 9, not by 5; seen at hv4/br-int to-instance, off its way"},
		{name: "left by another port too", pair: shown, probes: []string{"0123 @hv4:to"},
			want: "silent guest-silent | hv4/br-int to-instance → hv4/br-int from-instance | hv4 | delivered to tap-b4 of hv4, but blue-4 does not answer (seen leaving by its port); seen at hv4/br-int to-instance, off its way"},
		{name: "left by another port, answered", pair: shown, probes: []string{"012456 @hv4:to"},
			want: "healthy duplicate | - |  | passed hv4/br-int to-instance without a sample; also seen at hv4/br-int to-instance, off its way"},
		{name: "answer left by another port", pair: shows, probes: []string{"012345 @hv4:back"},
			want: "unknown misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: it left by OpenFlow port 9, not by 5 | ask hv4/br-int!"},
		{name: "no touch: left by another port", noTouch: true, pair: shown, probes: []string{"012 @hv4:to"},
			want: "unknown misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: it left by OpenFlow port 9, not by 5 | ask hv4/br-int!"},
		{name: "no touch: left by another port, as explained", noTouch: true, pair: shown, probes: []string{"012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-x"},
			want: "faulty misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | hv4 delivers it to tap-x, but blue-4 is at tap-b4; seen at hv4/br-int to-instance, off its way"},
		{name: "no touch: left by another port, dropped now", noTouch: true, pair: shown, probes: []string{"012 @hv4:to"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: drop},
			want: "unknown misdirected | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: it left by OpenFlow port 9, not by 5"},
		{name: "left by another port, link down", pair: shown, net: []func(hosts){linkDown("hv4", "tap-b4")}, probes: []string{"012 @hv4:to"},
			want: "silent guest-down | hv4/br-int from-tunnel → hv4/br-int from-instance | hv4 | link of tap-b4 on hv4 is down: blue-4 is off, or its interface is; seen at hv4/br-int to-instance, off its way | ask hv4/br-int!"},
		{name: "left by another port of another host", pair: shown, probes: []string{"01 @hv3:to"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv4/br-int from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv4 (10.1.1.1 → 10.1.2.4); seen at hv3/br-int to-instance, which does not have blue-4 | ask hv1/br-int"},
		{name: "no touch: whole", noTouch: true, pair: shown, probes: []string{"bare 0123"}, want: "healthy | - |  | "},
		{name: "no touch: the end proves the way", noTouch: true, pair: shown, probes: []string{"bare 013"}, want: "healthy samples | - |  | passed hv4/br-int from-tunnel without a sample"},
		{name: "no touch: on one host", noTouch: true, net: []func(hosts){taps}, pair: local, probes: []string{"01"}, want: "healthy | - |  | "},
		{name: "no touch: one of two", noTouch: true, pair: shown, probes: []string{"01", "0123"},
			want: "healthy loss | - |  | 1 of 2 probes lost, between hv1/br-tun to-tunnel and hv4/br-int from-tunnel"},
		{name: "no touch: source without link", noTouch: true, net: []func(hosts){linkDown("hv1", "tap-b1")}, pair: shown, probes: []string{"0123"}, want: "healthy | - |  | "},
		{name: "no touch: guest without link", noTouch: true, net: []func(hosts){linkDown("hv4", "tap-b4")}, pair: shown, probes: []string{"0123"},
			want: "silent guest-down | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | link of tap-b4 on hv4 is down: blue-4 is off, or its interface is"},
		{name: "no touch: guest without link, the switch drops it", noTouch: true, net: []func(hosts){linkDown("hv4", "tap-b4")}, pair: shown, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Delivered, Port: "tap-b4"},
			want: "silent guest-down | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | link of tap-b4 on hv4 is down: blue-4 is off, or its interface is"},
		{name: "no touch: denied", noTouch: true, pair: shown, probes: []string{"012"}, explain: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-int", 82, 0, "")},
			want: "policy security-rule | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | hv4: denied by a security rule: br-int table 82, priority 0, any packet (cookie 0xc0ffee)"},
		{name: "no touch: not delivered, not explained", noTouch: true, pair: shown, probes: []string{"012"},
			want: "unknown unexplained | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | no sample after hv4/br-int from-tunnel: lost on hv4 before tap-b4; whether by a fault or by a security rule is not known: what its flows do with it was not explained | ask hv4/br-int!"},
		{name: "no touch: tunnel", noTouch: true, pair: shown, probes: []string{"01"}, explain: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv4", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv4/br-int from-tunnel | hv1 | hv1 sends it to 10.1.2.3 (hv3), but blue-4 is on hv4 (10.1.2.4): stale or wrong tunnel"},
		{name: "no touch: tap off, nothing sent", noTouch: true, net: []func(hosts){unplug("hv4", "tap-b4")}, pair: shown,
			want: "faulty port | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | tap-b4 is not on br-int of hv4"},
		{name: "no touch: tap off since", noTouch: true, net: []func(hosts){unplug("hv4", "tap-b4")}, pair: shown, probes: []string{"012"},
			want: "faulty port | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | tap-b4 is not on br-int of hv4 | ask hv4/br-int"},
		{name: "no touch: delivery not sampled", noTouch: true, pair: crossing,
			want: "unknown unseen | - | hv1 | no-touch: to-instance is not sampled at tap-b3 of hv3"},
		{name: "no touch: delivery not seen", noTouch: true, pair: shown, probes: []string{"012"}, impair: []func(*Evidence){windowed("hv4", "br-int", lossy)},
			want: "unknown samples | hv4/br-int from-tunnel → hv4/br-int to-instance | hv4 | seen up to hv4/br-int from-tunnel; beyond, we could not see: hv4/br-int: agent lost 3 samples meanwhile"},
		{name: "no touch: could not be withheld", noTouch: true, pair: shown, probes: []string{"no:hv4_would_not_withhold_it"},
			want: "unknown injection | before hv1/br-int from-instance | hv1 | hv1 could not inject: hv4 would not withhold it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pathOf(t, lab(t, tt.net...), tt.pair)
			if tt.noTouch {
				p = noTouch(p)
			}
			e := Evidence{Path: p, Scheme: tt.scheme, Hooks: live(p), Explanation: tt.explain}
			for _, text := range tt.probes {
				e.Attempts = append(e.Attempts, probe(t, p, text))
			}
			for _, impair := range tt.impair {
				impair(&e)
			}
			r := Judge(e)
			if got := show(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if why := kindless(&r); why != "" {
				t.Errorf("%s: %s", why, show(&r))
			}
			if why := unshown(&r); why != "" {
				t.Errorf("%s: %s", why, show(&r))
			}
			if r.Probes != len(tt.probes) {
				t.Errorf("Probes = %d, want %d", r.Probes, len(tt.probes))
			}
			if again := Judge(e); !reflect.DeepEqual(r, again) {
				t.Errorf("judged again: %+v\nfirst: %+v", again, r)
			}
			if m := r.Proto(p.Pair); int(m.GetVerdict()) != int(r.Verdict) || (m.Segment == nil) != (r.Segment == nil) {
				t.Errorf("Proto = %v", m)
			}
		})
	}
}

// TestScant: what was lost so seldom that it may be chance is no fault by itself, and may say more of one that another scheme has shown.
func TestScant(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 blue-3")
	e := Evidence{Path: p, Scheme: stain.ICMP, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01")}, Enough: 3}
	if r := Judge(e); r.Verdict != Unknown || r.Scant {
		t.Errorf("alone: %s, scant %t", show(&r), r.Scant)
	}
	e.Explains = true
	if r := Judge(e); r.Verdict != Faulty || !r.Scant {
		t.Errorf("beside: %s, scant %t", show(&r), r.Scant)
	}
	e.Enough = 1
	if r := Judge(e); r.Verdict != Faulty || r.Scant {
		t.Errorf("enough: %s, scant %t", show(&r), r.Scant)
	}
}

// TestWrongKeySeen: the destination's host sees the key that came with the packet.
func TestWrongKeySeen(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 green-3")
	a := probe(t, p, "012")
	a.Seen[2].TunID = 9999
	r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{a},
		Explanation: &Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-tun", 4, 0, ""), Command: "ovs-appctl ofproto/trace br-tun in_port=10"}})
	const want = "faulty vni | hv3/br-tun from-tunnel → hv3/br-int from-tunnel | hv1 | hv3: dropped by br-tun table 4, priority 0, any packet (cookie 0xc0ffee); " +
		"it came with tunnel key 9999, but the key of network green is 1002: look at hv1"
	if got := show(&r); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if r.Flow == nil || r.Flow.Table != 4 || r.Command == "" {
		t.Errorf("Flow = %v, Command = %q", r.Flow, r.Command)
	}
}

// TestLoop: the same packet comes by again with a smaller TTL.
func TestLoop(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 blue-3")
	a := probe(t, p, "011")
	a.Seen[2].TTL -= 2
	r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{a}})
	if !strings.Contains(r.Cause, "seen again at hv1/br-tun to-tunnel with another TTL: a loop") {
		t.Errorf("Cause = %q", r.Cause)
	}
}

// TestNeed: what is asked is the packet as it came to the host that saw it last.
func TestNeed(t *testing.T) {
	t.Parallel()
	ip := func(s string) []byte { return as16(netip.MustParseAddr(s)) }
	tests := []struct {
		name, pair, seen string
		want             *dyetracev1.Explain
	}{
		{"at the source", "blue-1 green-3", "0", &dyetracev1.Explain{Id: 5, Bridge: "br-int", InPort: 20,
			SrcMac: 0xfa163e000111, DstMac: 0xfa163e000101, SrcIp: ip("10.0.1.11"), DstIp: ip("10.0.2.13"), Ttl: 64, Scheme: 1}},
		{"out of the tunnel, routed", "blue-1 green-3", "012", &dyetracev1.Explain{Id: 5, Bridge: "br-tun", InPort: 10,
			SrcMac: 0xfa163e000201, DstMac: 0xfa163e000213, SrcIp: ip("10.0.1.11"), DstIp: ip("10.0.2.13"), Ttl: 63,
			TunId: 1002, TunSrc: 0x0a010101, TunDst: 0x0a010203, Scheme: 1}},
		{"past the patch port", "blue-1 green-3", "0123", &dyetracev1.Explain{Id: 5, Bridge: "br-tun", InPort: 10,
			SrcMac: 0xfa163e000201, DstMac: 0xfa163e000213, SrcIp: ip("10.0.1.11"), DstIp: ip("10.0.2.13"), Ttl: 63,
			TunId: 1002, TunSrc: 0x0a010101, TunDst: 0x0a010203, Scheme: 1}},
		{"the answer", "blue-1 blue-3", "01234", &dyetracev1.Explain{Id: 5, Bridge: "br-int", InPort: 24,
			SrcMac: 0xfa163e000113, DstMac: 0xfa163e000111, SrcIp: ip("10.0.1.13"), DstIp: ip("10.0.1.11"), Ttl: 64, Reply: true, Scheme: 1}},
		{"of two, the one that was seen to come in", "blue-1 green-3", "013/012", &dyetracev1.Explain{Id: 5, Bridge: "br-tun", InPort: 10,
			SrcMac: 0xfa163e000201, DstMac: 0xfa163e000213, SrcIp: ip("10.0.1.11"), DstIp: ip("10.0.2.13"), Ttl: 63,
			TunId: 1002, TunSrc: 0x0a010101, TunDst: 0x0a010203, Scheme: 1}},
		{"sent unseen", "blue-1 green-3", "1", &dyetracev1.Explain{Id: 5, Bridge: "br-int", Port: "tap-b1",
			SrcMac: 0xfa163e000111, DstMac: 0xfa163e000101, SrcIp: ip("10.0.1.11"), DstIp: ip("10.0.2.13"), Ttl: 64, Scheme: 1}},
		{"answered unseen", "blue-1 blue-3", "01235", &dyetracev1.Explain{Id: 5, Bridge: "br-int", Port: "tap-b3",
			SrcMac: 0xfa163e000113, DstMac: 0xfa163e000111, SrcIp: ip("10.0.1.13"), DstIp: ip("10.0.1.11"), Ttl: 64, Reply: true, Scheme: 1}},
	}
	for _, tt := range tests {
		p := pathOf(t, lab(t), tt.pair)
		var tried []Attempt
		for seen := range strings.SplitSeq(tt.seen, "/") {
			tried = append(tried, probe(t, p, seen))
		}
		r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: tried})
		if r.Need == nil {
			t.Errorf("%s: nothing asked", tt.name)
			continue
		}
		if d := cmp.Diff(tt.want, r.Need.Proto(5), protocmp.Transform()); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
	}
	// Over IPv6, an echo request.
	p6 := *pathOf(t, lab(t), "blue-1 blue-3")
	p6.Src, p6.Dst = netip.MustParseAddr("fd00:1::11"), netip.MustParseAddr("fd00:1::13")
	r := Judge(Evidence{Path: &p6, Scheme: stain.ICMP, Hooks: live(&p6), Attempts: []Attempt{probe(t, &p6, "0")}})
	want := &dyetracev1.Explain{Id: 5, Bridge: "br-int", InPort: 20, SrcMac: 0xfa163e000111, DstMac: 0xfa163e000113,
		SrcIp: ip("fd00:1::11"), DstIp: ip("fd00:1::13"), Ttl: 64, Scheme: dyetracev1.Scheme_SCHEME_ICMP}
	if r.Need == nil {
		t.Error("icmp over IPv6: nothing asked")
	} else if d := cmp.Diff(want, r.Need.Proto(5), protocmp.Transform()); d != "" {
		t.Errorf("icmp over IPv6: -want +got\n%s", d)
	}
	// By a tunnel over IPv6, whose addresses the copy has no room for: those that are configured, or the
	// only ones that there can be.
	for _, tt := range []struct {
		name          string
		local, remote string
		vteps         [2][]netip.Addr // of the sender, and of the receiver
		want          bool
	}{
		{name: "configured", local: "fd00::3", remote: "fd00::1", want: true},
		{name: "any remote, one address each", vteps: [2][]netip.Addr{{netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd00::1")}, {netip.MustParseAddr("fd00::3")}}, want: true},
		{name: "any remote, two to choose from", local: "fd00::3", vteps: [2][]netip.Addr{{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}}},
		{name: "over IPv4, and no source was told", local: "10.1.2.3", remote: "10.1.1.1"},
	} {
		p := *pathOf(t, lab(t), "blue-1 blue-3")
		a := probe(t, &p, "012")
		a.Seen[2].TunSrc, a.Seen[2].InPort = netip.Addr{}, 10
		end := inventory.Tunnel{Bridge: "br-tun", Port: "gre6", OFPort: 10, Type: "gre"}
		if tt.local != "" {
			end.Local = netip.MustParseAddr(tt.local)
		}
		if tt.remote != "" {
			end.Remote = netip.MustParseAddr(tt.remote)
		}
		p.To.Tunnels, p.From.VTEPs, p.To.VTEPs = []inventory.Tunnel{end}, tt.vteps[0], tt.vteps[1]
		r := Judge(Evidence{Path: &p, Hooks: live(&p), Attempts: []Attempt{a}})
		if r.Need == nil {
			t.Errorf("tunnel over IPv6, %s: nothing asked", tt.name)
			continue
		}
		m := r.Need.Proto(5)
		got := string(m.TunSrcIp) == string(ip("fd00::1")) && string(m.TunDstIp) == string(ip("fd00::3"))
		if got != tt.want || !tt.want && m.TunSrcIp != nil || m.TunId != a.Seen[2].TunID || m.TunSrc != 0 {
			t.Errorf("tunnel over IPv6, %s: asked %v", tt.name, m)
		}
	}
	// What is asked about is the segment that was seen last, if that is known: of the answer of a guest that listens, a SYN-ACK.
	for _, tt := range []struct {
		up    string // to where it was seen
		flags uint8  // there
		reply bool
	}{{"0123", 0x02, false}, {"012345", 0x12, true}, {"012345", 0x14, true}, {"0123456", 0x12, true}, {"012345", 0, true}} {
		p := pathOf(t, lab(t), "blue-1 blue-3")
		a := probe(t, p, tt.up)
		a.Seen[len(a.Seen)-1].Flags = tt.flags
		r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{a}})
		if r.Need == nil || r.Need.Reply != tt.reply || r.Need.Proto(1).TcpFlags != uint32(tt.flags) {
			t.Errorf("seen up to %s with flags %#x: asked %+v", tt.up, tt.flags, r.Need)
		}
	}
	// A switch that does not tell in_port: by the port's name.
	p := pathOf(t, lab(t), "blue-1 blue-3")
	a := probe(t, p, "0")
	a.Seen[0].InPort = 0
	if r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{a}}); r.Need == nil || r.Need.Port != "tap-b1" || r.Need.InPort != 0 {
		t.Errorf("asked %+v, want port tap-b1", r.Need)
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	tests := []struct {
		flow *Flow
		want bool
	}{
		{flow("br-int", 72, 50, "ct_state=+inv+trk"), true},
		{flow("br-int", 82, 40, "ct_state=+est,ip,reg5=0x3"), true},
		{flow("br-int", 82, 0, ""), true},
		{flow("br-int", 93, 0, ""), true},
		{flow("br-int", 72, 50, "ct_state=+inv+trk,tcp6,reg5=0x3"), true},
		{flow("br-int", 82, 40, "ct_state=+est,ipv6,reg5=0x3"), true},
		{flow("br-int", 82, 40, "icmp6,reg5=0x3"), true},
		{flow("br-int", 82, 40, "ipv6,reg5=0x3,ipv6_src=fd00:1::11"), false},
		{flow("br-int", 82, 90, "icmp6,reg5=0x3,icmp_type=128"), false},
		{flow("br-int", 82, 90, "tcp6,reg5=0x3,tp_dst=11"), false},
		{flow("br-int", 72, 50, "ip,nw_dst=10.0.1.13"), false}, // somebody's own drop in that table
		{flow("br-int", 72, 90, "ct_state=+rpl+trk,ip,reg5=0x3,nw_dst=10.0.1.13"), false},
		{flow("br-int", 82, 90, "tcp,reg5=0x3,tp_dst=11"), false},
		{flow("br-int", 72, 50, ""), false},         // everything, and not as a last resort
		{flow("br-int", 71, 10, "reg5=0x3"), false}, // spoofed address
		{&Flow{Bridge: "br-int", Table: 72, Priority: 40, Match: "ct_state=-est,reg5=0x1", Actions: "resubmit(,93)"}, true},
		{&Flow{Bridge: "br-int", Table: 72, Priority: 40, Match: "ct_state=+est,ip,reg5=0x1", Actions: "ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[]))"}, true},
		{&Flow{Bridge: "br-int", Table: 71, Priority: 10, Match: "reg5=0x1", Actions: "ct_clear,resubmit(,93)"}, false},
		{&Flow{Bridge: "br-int", Table: 82, Priority: 50, Match: "ct_state=+est-rel+rpl,reg5=0x5", Actions: "output:5"}, false}, // allowed
		{&Flow{Bridge: "br-int", Table: 82, Priority: 50, Match: "ct_state=+est,ip,reg5=0x5", Actions: `ct(commit,zone=5),output:"tap-b3",resubmit(,92)`}, false},
		{flow("br-int", 60, 90, "reg5=0x3"), false},
		{flow("br-tun", 72, 0, ""), false},
		{nil, false},
	}
	for _, tt := range tests {
		if got := Policy(tt.flow, "br-int"); got != tt.want {
			t.Errorf("Policy(%v) = %v", tt.flow, got)
		}
	}
}

func TestAlign(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, pair string
		at         map[int]int64 // clock of the point's own host, µs
		want       []int64       // µs
	}{
		{"both directions take equally long", "blue-1 blue-3",
			map[int]int64{0: 1000, 1: 1010, 2: 500, 3: 510, 4: 540, 5: 560, 6: 1110, 7: 1130}, []int64{0, 10, 30, 40, 70, 90, 110, 130}},
		{"no answer: the way took no time", "blue-1 blue-3", map[int]int64{0: 1000, 1: 1010, 2: 500, 3: 510}, []int64{0, 10, 10, 20, 0, 0, 0, 0}},
		{"one sample over there: in the middle", "blue-1 blue-3", map[int]int64{0: 1000, 1: 1010, 3: 77, 6: 1110, 7: 1130}, []int64{0, 10, 0, 60, 0, 0, 110, 130}},
		{"first point missing", "blue-1 blue-3", map[int]int64{1: 1010, 2: 500, 5: 560, 6: 1110}, []int64{0, 0, 20, 0, 0, 80, 100, 0}},
		{"source unseen: the other's clock", "blue-1 blue-3", map[int]int64{2: 500, 5: 560, 6: 1110, 7: 1130}, []int64{0, 0, 0, 0, 0, 60, 60, 80}},
		{"one host", "blue-1 blue-2", map[int]int64{0: 1000, 1: 1077}, []int64{0, 77}},
		{"nothing", "blue-1 blue-2", nil, []int64{0, 0}},
	}
	for _, tt := range tests {
		p := pathOf(t, lab(t), tt.pair)
		var a Attempt
		for i := range p.Points {
			if us, ok := tt.at[i]; ok {
				a.Seen = append(a.Seen, Sample{Point: i, AtNs: us * 1000})
			}
		}
		e := Evidence{Path: p}
		tr := e.trail(&a)
		var got []int64
		for i, s := range align(p, &tr) {
			if _, seen := tt.at[i]; s.Seen != seen {
				t.Errorf("%s: point %d: Seen = %v", tt.name, i, s.Seen)
			}
			got = append(got, s.AtNs/1000)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
	}
}

func TestRTT(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 blue-3")
	for seen, want := range map[string]int64{"01234567": 700_007, "1234567": 0, "0123456": 0} {
		if r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, seen)}}); r.RTTNs != want {
			t.Errorf("seen at %s: RTT = %d ns, want %d", seen, r.RTTNs, want)
		}
	}
}

func TestUnanswered(t *testing.T) {
	t.Parallel()
	whole := pathOf(t, lab(t), "blue-1 blue-3")
	shown := pathOf(t, lab(t), "blue-1 blue-4")
	shows := pathOf(t, lab(t), "blue-4 blue-1")
	local := pathOf(t, lab(t), "blue-1 blue-2")
	gap := pathOf(t, lab(t, noPatch("hv3")), "blue-1 blue-3") // 3 and 5 are not there
	dark := pathOf(t, lab(t, refused("hv3", "br-int")), "blue-1 blue-3")
	tests := []struct {
		name string
		path *plan.Path
		seen string
		want bool
	}{
		{"delivered", whole, "0123", true},
		{"the end is enough", whole, "3", true},
		{"not as far", whole, "012", false},
		{"answered", whole, "01234", false},
		{"answered, seen by the source only", shows, "0126", false},
		{"to-instance is the end", shown, "012", false},
		{"seen leaving", shown, "0123", true},
		{"on one host", local, "0", true},
		{"the last point that there is", gap, "012", true},
		{"no hook could be armed", dark, "012", false},
		{"none", whole, "", false},
		{"no touch: nobody is to answer", noTouch(shown), "0123", false},
	}
	for _, tt := range tests {
		a := probe(t, tt.path, tt.seen)
		if got := Unanswered(tt.path, &a); got != tt.want {
			t.Errorf("%s: Unanswered = %v", tt.name, got)
		}
	}
}

// TestResultProto: what users get of a faulty pair.
func TestResultProto(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 green-3")
	x := ExplanationFromProto(&dyetracev1.Explanation{Id: 1, Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Command: "ovs-appctl …",
		Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 60, Priority: 9, Match: "ip", Actions: "drop", Cookie: 1}}, 4)
	r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01234")}, Explanation: x})
	m := r.Proto(p.Pair)
	seg := m.GetSegment()
	if seg.GetDirection() != dyetracev1.Direction_DIRECTION_REPLY || seg.GetFrom().GetKind() != dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE ||
		seg.GetTo().GetBridge() != "br-tun" || seg.GetTo().GetHost() != "hv3" {
		t.Errorf("segment = %v", seg)
	}
	if len(m.GetSamples()) != 8 || m.GetFlow().GetTable() != 60 || m.GetCommand() != "ovs-appctl …" || m.GetDst().GetNetwork() != "green" {
		t.Errorf("result = %v", m)
	}
	s := m.GetSamples()[2]
	if !s.GetSeen() || s.GetTunSrc() != "10.1.1.1" || s.GetTunId() != 1002 || s.GetTtl() != 63 || s.GetDirection() != dyetracev1.Direction_DIRECTION_FORWARD {
		t.Errorf("sample 2 = %v", s)
	}
	if s := m.GetSamples()[7]; s.GetSeen() || s.GetAtNs() != 0 {
		t.Errorf("sample 7 = %v", s)
	}
	if x := ExplanationFromProto(&dyetracev1.Explanation{}, 0); x.Error == "" {
		t.Error("an answer without outcome passed for one")
	}
	if got := Addr4(as32(netip.MustParseAddr("10.1.2.3"))); got.String() != "10.1.2.3" || Addr4(0).IsValid() {
		t.Errorf("Addr4 = %v", got)
	}
}

func BenchmarkJudge(b *testing.B) {
	p := pathOf(b, lab(b), "blue-1 blue-3")
	for name, seen := range map[string]string{"healthy": "01234567", "lost": "012"} {
		e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(b, p, seen)}}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r := Judge(e); r.Verdict == 0 {
					b.Fatal("no verdict")
				}
			}
		})
	}
}
