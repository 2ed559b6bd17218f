package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// lab is four hypervisors: hv1 to hv3 with br-int and br-tun, hv4 with its tunnels on br-int
// and a switch that shows what it delivers.
const instances = `
networks:
  - {name: blue, cidr: 10.0.1.0/24, gateway: {ip: 10.0.1.1, mac: "fa:16:3e:00:01:01"}, router: r1, segmentation_id: 1001}
  - {name: green, cidr: 10.0.2.0/24, gateway: {ip: 10.0.2.1, mac: "fa:16:3e:00:02:01"}, router: r1, segmentation_id: 1002}
instances:
  - {name: blue-1, network: blue, mac: "fa:16:3e:00:01:11", ip: 10.0.1.11, host: hv1, port: tap-b1}
  - {name: blue-2, network: blue, mac: "fa:16:3e:00:01:12", ip: 10.0.1.12, host: hv1, port: tap-b2}
  - {name: blue-3, network: blue, mac: "fa:16:3e:00:01:13", ip: 10.0.1.13, host: hv3, port: tap-b3}
  - {name: green-3, network: green, mac: "fa:16:3e:00:02:13", ip: 10.0.2.13, host: hv3, port: tap-g3}
  - {name: blue-4, network: blue, mac: "fa:16:3e:00:01:14", ip: 10.0.1.14, host: hv4, port: tap-b4}
`

var vteps = map[string]string{"hv1": "10.1.1.1", "hv2": "10.1.1.2", "hv3": "10.1.2.3", "hv4": "10.1.2.4"}

func lab(t testing.TB, change ...func(map[string]*inventory.Host)) *inventory.Snapshot {
	t.Helper()
	file, err := inventory.Parse("instances.yml", []byte(instances))
	if err != nil {
		t.Fatal(err)
	}
	const (
		fromInstance = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE
		fromTunnel   = dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL
		toInstance   = dyetracev1.PointKind_POINT_KIND_TO_INSTANCE
		toTunnel     = dyetracev1.PointKind_POINT_KIND_TO_TUNNEL
		live         = dyetracev1.HookState_HOOK_STATE_LIVE
	)
	hosts := map[string]*inventory.Host{}
	for i, name := range []string{"hv1", "hv2", "hv3", "hv4"} {
		brInt := &dyetracev1.Bridge{Name: "br-int", State: live, Kinds: []dyetracev1.PointKind{fromInstance, fromTunnel}, UplinkBridge: "br-tun"}
		brTun := &dyetracev1.Bridge{Name: "br-tun", State: live, Kinds: []dyetracev1.PointKind{fromTunnel, toTunnel}}
		h := &inventory.Host{Name: name, Connected: true, Bridges: []*dyetracev1.Bridge{brInt, brTun}}
		tunnels := &brTun.Tunnels
		if name == "hv4" {
			brInt.Kinds, brInt.UplinkBridge, h.Bridges = append(brInt.Kinds, toInstance), "", h.Bridges[:1]
			tunnels = &brInt.Tunnels
		}
		for k, other := range []string{"hv1", "hv2", "hv3", "hv4"} {
			if k != i {
				*tunnels = append(*tunnels, &dyetracev1.Tunnel{Port: "gre-" + other, Ofport: uint32(10 + k), Type: "gre", LocalIp: vteps[name], RemoteIp: vteps[other]})
			}
		}
		hosts[name] = h
	}
	for i, in := range file.Instances {
		h := hosts[in.Host]
		h.Endpoints = append(h.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: in.Port, Ofport: uint32(1 + i), Mac: in.MAC.String(), LinkState: "up"})
	}
	for _, c := range change {
		c(hosts)
	}
	return inventory.NewSnapshot(file, *hosts["hv1"], *hosts["hv2"], *hosts["hv3"], *hosts["hv4"])
}

// linkDown takes the link of a port away, unplug the port itself.
func linkDown(host, port string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) {
		for _, e := range hosts[host].Endpoints {
			if e.Port == port {
				e.LinkState = "down"
			}
		}
	}
}

func unplug(host, port string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) {
		h := hosts[host]
		var rest []*dyetracev1.Endpoint
		for _, e := range h.Endpoints {
			if e.Port != port {
				rest = append(rest, e)
			}
		}
		h.Endpoints = rest
	}
}

func disconnected(host string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) { hosts[host].Connected = false }
}

func refused(host, bridge string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) {
		for _, b := range hosts[host].Bridges {
			if b.Name == bridge {
				b.State, b.Reason = dyetracev1.HookState_HOOK_STATE_REFUSED, "no free mark"
			}
		}
	}
}

// noPatch takes the patch between br-int and br-tun away, as the agent then reports it.
func noPatch(host string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) {
		h := hosts[host]
		h.Bridges[0].UplinkBridge = ""
		h.Bridges[0].Kinds = []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE}
		h.Bridges[1].Kinds = []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL}
	}
}

func remote(host, port, ip string) func(map[string]*inventory.Host) {
	return func(hosts map[string]*inventory.Host) {
		for _, b := range hosts[host].Bridges {
			for _, tun := range b.Tunnels {
				if tun.Port == port {
					tun.RemoteIp = ip
				}
			}
		}
	}
}

// pathOf is the path of "SRC DST".
func pathOf(t testing.TB, snap *inventory.Snapshot, pair string) *plan.Path {
	t.Helper()
	return pathBy(t, snap, pair, plan.Options{})
}

func pathBy(t testing.TB, snap *inventory.Snapshot, pair string, o plan.Options) *plan.Path {
	t.Helper()
	src, dst, _ := strings.Cut(pair, " ")
	pairs, err := plan.Pairs(snap, plan.Scope{Kind: plan.OnePair, Src: src, Dst: dst}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Of(snap, pairs[0], o)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// taps has every host show what it delivers.
func taps(hosts map[string]*inventory.Host) {
	const toInstance = dyetracev1.PointKind_POINT_KIND_TO_INSTANCE
	for _, h := range hosts {
		if b := h.Bridges[0]; !slices.Contains(b.Kinds, toInstance) {
			b.Kinds = append(b.Kinds, toInstance)
		}
	}
}

// noTouch is that path in no-touch, one way only: nothing may be sent unless its delivery is seen.
func noTouch(p *plan.Path) *plan.Path {
	q := *p
	q.NoTouch, q.Points = true, nil
	for _, pt := range p.Points {
		if pt.Direction == plan.Forward {
			q.Points = append(q.Points, pt)
		}
	}
	shown := len(q.Points) > 0 && goal(&q) == len(q.Points)-1
	if q.Blocked == nil && (!shown || q.To.Absent != "") {
		q.Blocked = &plan.Blocked{Reason: fmt.Sprintf("no-touch: to-instance is not sampled at %s of %s", q.To.Port, q.To.Host), By: plan.ByDelivery}
	}
	return &q
}

// live is every hook of the path audited live before and after, with nothing lost.
func live(p *plan.Path) map[Place]Window {
	hooks := map[Place]Window{}
	for _, pt := range p.Points {
		audit := Audit{Live: true, Epoch: 3, Lost: 7}
		before, after := audit, audit
		hooks[Place{pt.Host, pt.Bridge}] = Window{&before, &after}
	}
	return hooks
}

// probe reads an attempt: "bare" if the destination's bridge was not armed for its answer (it was,
// otherwise), "full" if no bridge had room for the flow that knows the reply to an echo request,
// a digit for each point that saw it, "no:REASON" for a failure to
// inject, "absent", "mute" for nothing heard from the injecting agent, and "@hv4:fwd" or
// "@hv4:reply" for sightings off the way, at br-int from-tunnel or from-instance; "@hv4:to" and
// "@hv4:back" are it and its answer as they leave br-int by OpenFlow port 9.
func probe(t testing.TB, p *plan.Path, text string) Attempt {
	t.Helper()
	a := Attempt{Injected: true, Armed: true}
	room := true
	for _, word := range strings.Fields(text) {
		where, stray := strings.CutPrefix(word, "@")
		why, failed := strings.CutPrefix(word, "no:")
		switch {
		case stray:
			var s Sighting
			host, kind, _ := strings.Cut(where, ":")
			s.Host, s.Bridge = host, "br-int"
			s.Direction, s.Kind = plan.Forward, 2
			switch kind {
			case "reply":
				s.Direction, s.Kind = plan.Reply, stain.FromInstance
			case "to":
				s.Kind, s.InPort = stain.ToInstance, 9
			case "back":
				s.Direction, s.Kind, s.InPort = plan.Reply, stain.ToInstance, 9
			}
			a.Stray = append(a.Stray, s)
		case failed:
			a.Injected, a.Failure = false, strings.ReplaceAll(why, "_", " ")
		case word == "absent":
			a.Injected, a.Failure, a.PortAbsent = false, "no such port", true
		case word == "mute":
			a.Injected = false
		case word == "bare":
			a.Armed = false
		case word == "full":
			room = false
		default:
			for _, digit := range word {
				s := sampleAt(t, p, int(digit-'0'), int64(len(a.Seen)))
				s.NoReply = !room
				a.Seen = append(a.Seen, s)
			}
		}
	}
	return a
}

// sampleAt is what a point sees of a probe that goes as it should, 100 µs after the point
// before; each host's clock has its own zero.
func sampleAt(t testing.TB, p *plan.Path, i int, n int64) Sample {
	t.Helper()
	if i >= len(p.Points) {
		t.Fatalf("no point %d: %s has %d", i, p.Pair, len(p.Points))
	}
	pt := &p.Points[i]
	zero := map[string]int64{"hv1": 5_000_000, "hv2": 0, "hv3": 77_000_000_000, "hv4": 1_000}[pt.Host]
	s := Sample{Point: i, AtNs: zero + int64(i)*100_000 + n, TTL: pt.TTL, InPort: uint32(20 + i)}
	if pt.Kind == 2 && i > 0 && p.Points[i-1].Host != pt.Host {
		s.TunSrc, s.TunID, s.InPort = netip.MustParseAddr(vteps[p.Points[i-1].Host]), pt.TunID, 10
	}
	return s
}

// show draws a result as the tables below want it.
func show(r *Result) string {
	seg := "-"
	if r.Segment != nil {
		seg = r.Segment.String()
	}
	sort := r.Verdict.String()
	if r.Kind != 0 {
		sort += " " + r.Kind.String()
	}
	text := fmt.Sprintf("%s | %s | %s | %s", sort, seg, r.Host, r.Cause)
	if r.Need != nil {
		text += fmt.Sprintf(" | ask %s/%s", r.Need.Host, r.Need.Bridge)
		if r.Need.Decides {
			text += "!"
		}
	}
	return text
}
