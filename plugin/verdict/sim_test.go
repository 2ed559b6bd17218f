package verdict

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// The simulator knows the truth: which probes the network or the guest lost, and where. It
// shows the judge what agents would: samples, some of them lost by us, and audits and reasons
// that tell of every impairment. The judge may then say unknown; it may never be wrong.
//
// What lies between the last bridge and the guest's kernel counts as the guest: nothing that
// an agent sees could tell them apart. A guest that answers may clear the ToS, as one does that
// has the port open: its answer is seen only from where a bridge stains it.

// fate is what became of a probe.
type fate uint8

const (
	arrived  fate = iota
	unsent        // it never entered
	byFlow        // a flow dropped it
	byRule        // a security rule did
	byNet         // lost, and no flow shows why
	byGuest       // delivered, not answered
	astray        // tunnelled to a host that does not have the destination
	answered      // astray, and answered from there
)

func (f fate) String() string {
	return [...]string{"arrived", "unsent", "byFlow", "byRule", "byNet", "byGuest", "astray", "answered"}[f]
}

// truth of one probe: it passed points up to reach. plain says that all of it that matters could
// be seen: an answer would have borne the stain, or did not matter.
type truth struct {
	fate  fate
	reach int
	plain bool
}

// world is one network with at most one lasting fault, and ours.
type world struct {
	path   *plan.Path
	scheme stain.Scheme
	// clears says that answers of guests do not bear the ToS of what they answer.
	clears bool
	// noLink says that the destination's port is down.
	noLink bool
	// deaf are the attempts whose answers no bridge was made to know otherwise (tcp), full the
	// bridges without room for the flow that knows replies, by attempt (icmp).
	deaf []bool
	full []map[Place]bool
	// hard is the fault that every probe meets after passing Points[at]; arrived is none.
	hard fate
	at   int

	guest    int // the last point before the guest; in no-touch there is none, and this past all
	crossing int // the last point before the tunnel, -1 on one host

	lossy    map[Place]bool // its agent loses samples
	quietly  map[Place]bool // and does not notice; its hook's counters do
	unread   map[Place]map[stain.Kind]uint64
	gaps     map[Place][]int // attempts during which the hook was away
	late     map[Place]bool  // then it went only after the probe had passed, before the answer
	goneFrom map[string]int  // the agent was cut off before this attempt
	hidden   bool            // the host that gets what goes astray shows nothing
	impaired bool            // any of ours, or anything that makes a verdict depend on what we lack
	truths   []truth
	evidence Evidence

	now  []int // the last point that an attempt has passed by now, if it is still on its way
	wire wire  // what lies behind a byNet between two hosts

	// cut and blurred are goneFrom and impaired as the network's structure made them.
	cut     map[string]int
	blurred bool
}

// wire is what becomes of packets that are no tunnel's where a lasting fault loses those that are.
type wire uint8

const (
	passes wire = iota
	dark
	member // one of two ways is dark
)

// how a world is probed.
type how struct {
	scheme  stain.Scheme
	noTouch bool
	routes  bool // there are some, right or wrong
}

func build(t *rapid.T, tb testing.TB, h how) *world {
	pair := rapid.SampledFrom([]string{"blue-1 blue-3", "blue-3 blue-1", "blue-1 green-3", "blue-1 blue-2", "blue-1 blue-4", "blue-4 blue-1"}).Draw(t, "pair")
	return buildPair(t, tb, h, pair)
}

func buildPair(t *rapid.T, tb testing.TB, h how, pair string) *world {
	w := &world{scheme: h.scheme, clears: rapid.Bool().Draw(t, "clears"), lossy: map[Place]bool{}, quietly: map[Place]bool{}, unread: map[Place]map[stain.Kind]uint64{}, gaps: map[Place][]int{}, late: map[Place]bool{}, goneFrom: map[string]int{}, crossing: -1}

	var change []func(hosts)
	bare := cachedPath(tb, pair, "", nil)
	src, dst := bare.From, bare.To
	structural := rapid.SampledFrom([]string{"none", "none", "none", "none", "refused", "unplugged", "no link", "patch gone at the source",
		"patch gone at the destination", "destination disconnected", "source unplugged"}).Draw(t, "structure")
	tunnelled := src.Host != dst.Host && src.Host != "hv4" && dst.Host != "hv4"
	switch structural {
	case "refused":
		where := rapid.SampledFrom([]Place{{src.Host, "br-tun"}, {dst.Host, "br-tun"}, {"hv3", "br-int"}}).Draw(t, "refused")
		change = append(change, refused(where.Host, where.Bridge))
		structural += " " + where.Host + "/" + where.Bridge
		w.impaired = true
	case "unplugged":
		change = append(change, unplug(dst.Host, dst.Port))
	case "source unplugged":
		change = append(change, unplug(src.Host, src.Port))
	case "no link":
		change = append(change, linkDown(dst.Host, dst.Port))
	case "patch gone at the source":
		if tunnelled {
			change = append(change, noPatch(src.Host))
		}
	case "patch gone at the destination":
		if tunnelled {
			change = append(change, noPatch(dst.Host))
		}
	case "destination disconnected":
		change = append(change, disconnected(dst.Host))
		w.goneFrom[dst.Host], w.impaired = 0, true
	}
	w.noLink = structural == "no link"
	echoed := rapid.IntRange(0, 3).Draw(t, "echoes") > 0
	if echoed {
		change = append(change, echoing)
	}
	tapped := h.noTouch || rapid.IntRange(0, 3).Draw(t, "taps") == 0
	if tapped {
		change = append(change, taps)
	}
	var told routes
	if h.routes {
		told = drawRoutes(t, pair)
	}
	w.path = cachedPath(tb, pair, fmt.Sprintf("%s, taps %t, echoes %t", structural, tapped, echoed), told, change...)
	for _, end := range []*plan.End{&w.path.From, &w.path.To} {
		// Whoever has nothing but a file for a witness may have to say unknown.
		w.impaired = w.impaired || !end.Confirmed && end.Contradicted(w.path.VTEPs)
	}
	w.cut, w.blurred = maps.Clone(w.goneFrom), w.impaired
	if h.noTouch {
		w.path = noTouch(w.path)
	}
	w.measure()
	switch {
	case structural == "unplugged":
		w.hard, w.at = byFlow, w.beforeDelivery()
	case w.noLink:
		// Newer kernels drop it short of to-instance (do_output of openvswitch.ko).
		w.hard, w.at = byGuest, rapid.IntRange(w.beforeDelivery(), w.delivery()).Draw(t, "short of the port")
	case structural == "patch gone at the source" && tunnelled:
		w.hard, w.at = byFlow, 0
	case structural == "patch gone at the destination" && tunnelled:
		w.hard, w.at = byFlow, w.crossing+1
	default:
		w.fault(t)
	}
	return w
}

// measure finds the guest and the tunnel on the path.
func (w *world) measure() {
	for i, p := range w.path.Points {
		if p.Direction == plan.Forward {
			w.guest = i
			if p.Host == w.path.From.Host && w.path.From.Host != w.path.To.Host {
				w.crossing = i
			}
		}
	}
	if w.path.NoTouch {
		w.guest = len(w.path.Points)
	}
}

// labs keeps the snapshots that cachedPath made, and paths those paths: the worlds are many, their
// networks few. The judge changes no path, or results would differ from one world to the next.
var labs, paths sync.Map

func cachedPath(tb testing.TB, pair, structural string, told routes, change ...func(hosts)) *plan.Path {
	tb.Helper()
	key := fmt.Sprint(pair, " ", structural, " ", told)
	if p, ok := paths.Load(key); ok {
		return p.(*plan.Path)
	}
	network := pair + " " + structural // what is changed depends on the pair
	snap, ok := labs.Load(network)
	if !ok {
		snap, _ = labs.LoadOrStore(network, lab(tb, change...))
	}
	p, _ := paths.LoadOrStore(key, pathBy(tb, snap.(*inventory.Snapshot), pair, told.options()))
	return p.(*plan.Path)
}

// echoing has all agents answer probes of the underlay.
func echoing(all hosts) {
	for name, h := range all {
		h.Underlay = &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{vteps[name]}}
	}
}

// beforeDelivery is the point after which the destination's bridge hands the probe over.
func (w *world) beforeDelivery() int {
	if i := w.delivery(); i > 0 && w.path.Points[i].Kind == stain.ToInstance {
		return i - 1
	}
	return w.delivery()
}

// delivery is the last point on the way there.
func (w *world) delivery() int { return min(w.guest, len(w.path.Points)-1) }

// fault draws a lasting fault that can be where it is.
func (w *world) fault(t *rapid.T) {
	w.at = rapid.IntRange(0, max(len(w.path.Points)-2, 0)).Draw(t, "at")
	instances := w.path.Points[w.at].Kind == stain.FromInstance || w.at == w.beforeDelivery()
	switch w.hard = fate(rapid.IntRange(0, int(answered)).Draw(t, "hard")); w.hard {
	case unsent:
		w.hard = arrived
	case byFlow, byNet:
		if w.hard == byNet && w.crossing >= 0 && rapid.Bool().Draw(t, "on the wire") {
			w.at = w.crossing
		}
		if w.guestOnly(w.at) {
			w.hard = byGuest
		}
	case byRule:
		if !instances || w.guestOnly(w.at) {
			w.hard = arrived
		}
	case byGuest:
		w.at = w.guest // never, in no-touch
	case astray, answered:
		if w.crossing < 0 || w.hard == answered && w.path.NoTouch {
			w.hard = arrived
		}
		w.at = w.crossing
	}
	if w.hard == byNet && w.at == w.guest {
		w.hard = byGuest
	}
	w.wire = wire(rapid.IntRange(int(passes), int(member)).Draw(t, "wire"))
}

// guestOnly says that nothing but the guest can lose a packet after this point.
func (w *world) guestOnly(i int) bool {
	return i == w.guest && w.path.Points[i].Kind == stain.ToInstance
}

// impair draws what is wrong with our own eyes.
func (w *world) impair(t *rapid.T, attempts int) {
	if !rapid.Bool().Draw(t, "impaired") {
		return
	}
	w.impaired = true
	w.hidden = rapid.Bool().Draw(t, "hidden")
	for _, pt := range w.path.Points {
		place := Place{pt.Host, pt.Bridge}
		if _, done := w.gaps[place]; done || w.lossy[place] {
			continue
		}
		if _, cut := w.goneFrom[pt.Host]; cut {
			continue
		}
		switch rapid.IntRange(0, 5).Draw(t, "eyes of "+pt.Host+"/"+pt.Bridge) {
		case 0:
			w.lossy[place] = true
			w.quietly[place] = rapid.Bool().Draw(t, "quietly")
		case 1:
			w.gaps[place] = rapid.SliceOfDistinct(rapid.IntRange(0, attempts-1), rapid.ID[int]).Draw(t, "gaps")
			w.late[place] = rapid.Bool().Draw(t, "late")
		}
	}
	for _, h := range w.path.Hosts() {
		if _, cut := w.goneFrom[h]; cut {
			continue
		}
		if rapid.IntRange(0, 5).Draw(t, "agent of "+h) == 0 {
			w.goneFrom[h] = rapid.IntRange(0, attempts).Draw(t, "gone from")
		}
	}
}

// run sends the probes.
func (w *world) run(t *rapid.T, tb testing.TB) {
	attempts := rapid.IntRange(1, 3).Draw(t, "attempts")
	w.impair(t, attempts)
	if w.path.Blocked != nil {
		attempts = 0
	}
	w.listen(t, attempts)
	w.await(t)
	lost := map[Place]uint64{}
	for n := range attempts {
		tr := w.send(t, n)
		now := w.linger(t, tr)
		w.now = append(w.now, now.reach)
		stained := w.stained(n, now)
		tr.plain = now.reach == tr.reach && w.plain(n, tr, stained)
		w.truths = append(w.truths, tr)
		a := w.see(t, tb, n, now, stained, lost)
		a.Quiet = w.quiet(t, tr, now)
		w.evidence.Attempts = append(w.evidence.Attempts, a)
	}
	w.test(t)
	lossesSeen := 0
	for n, tr := range w.truths {
		if tr.plain && tr.fate != arrived && tr.fate != unsent && w.now[n] == tr.reach {
			lossesSeen++
		}
	}
	w.impaired = w.impaired || lossesSeen < w.evidence.Enough // it may be chance
	if attempts > 0 {
		best := w.best()
		w.impaired = w.impaired || !slices.Contains(w.truths, truth{best.fate, best.reach, true})
	}
	w.evidence.Path, w.evidence.Scheme = w.path, w.scheme
	w.evidence.Hooks = w.audits(lost)
	for h := range w.goneFrom {
		if w.evidence.Gone == nil {
			w.evidence.Gone = map[string]string{}
		}
		w.evidence.Gone[h] = "its agent was cut off"
	}
}

// await draws how long packets may take, how long they took of late, and how many must be lost to be no chance.
func (w *world) await(t *rapid.T) {
	e := &w.evidence
	if rapid.Bool().Draw(t, "patient") {
		e.Patience = 750 * time.Millisecond
		e.Trip = rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond}).Draw(t, "trip")
	}
	e.Enough = rapid.IntRange(0, 4).Draw(t, "enough")
	e.Explains = e.Enough > 0 && rapid.IntRange(0, 3).Draw(t, "explains") == 0
}

// linger has a packet be on its way still: how far it has come by now.
func (w *world) linger(t *rapid.T, tr truth) (now truth) {
	if now = tr; w.evidence.Patience > 0 && tr.reach > 0 && rapid.IntRange(0, 5).Draw(t, "tardy") == 0 {
		now = truth{fate: byNet, reach: rapid.IntRange(0, tr.reach-1).Draw(t, "by now at")}
		w.impaired = true
	}
	return now
}

// quiet draws for how long a packet's hooks were watched since it was seen last. One that still comes has been so long where it is:
// no longer than a packet may be, or than a guest may take that a moment ago took as long as its trips.
func (w *world) quiet(t *rapid.T, tr, now truth) (quiet time.Duration) {
	patience := w.evidence.Patience
	if patience == 0 {
		return 0
	}
	if now.reach == tr.reach {
		quiet = rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, patience * 2 / 5, patience * 4 / 5, patience, 2 * patience, 2 * patience, 2 * patience}).Draw(t, "watched")
		w.impaired = w.impaired || quiet < patience && tr.fate != arrived && tr.fate != answered
		return quiet
	}
	most := patience
	if trip := w.evidence.Trip; trip > 0 && w.beforeDelivery() <= now.reach && now.reach <= w.guest {
		most = min(most, max(patience*2/3, 4*trip))
	}
	return time.Duration(rapid.Int64Range(0, int64(most)-1).Draw(t, "watched since"))
}

// test draws a test of loss, and probes that arrived beside those that are looked at.
func (w *world) test(t *rapid.T) {
	some := slices.ContainsFunc(w.truths, func(tr truth) bool { return tr.fate == arrived })
	if !some || !rapid.Bool().Draw(t, "test") {
		return
	}
	e := &w.evidence
	if slices.ContainsFunc(w.truths, func(tr truth) bool { return !tr.plain }) {
		w.impaired = true // where one was lost that may have been answered unseen, the guest may have lost it
	}
	e.Test = rapid.SampledFrom([]*sequential.Plan{
		{P0: 0.02, P1: 0.2, Alpha: 1e-7, Beta: 0.1, Max: 80}, {P0: 0.01, P1: 0.5, Alpha: 0.05, Beta: 0.1, Max: 20},
	}).Draw(t, "plan")
	e.Measured = rapid.Bool().Draw(t, "measured")
	if slices.ContainsFunc(e.Attempts, func(a Attempt) bool {
		return len(a.Seen) > 0 && goal(w.path) >= 0 && slices.ContainsFunc(a.Seen, func(s Sample) bool { return s.Point >= goal(w.path) })
	}) {
		e.Arrived = rapid.IntRange(0, 20).Draw(t, "arrived besides")
	}
}

// network is the evidence of an exchange that is true of the network between two hosts: nothing passes where all is lost, half where
// one of two ways is dark, and else all, or what chance leaves. Nothing that passes is later than what is on its way by much.
func (w *world) network(t *rapid.T, q *NeedUnderlay) *Underlay {
	u := &Underlay{From: q.From, To: q.To, Src: q.Src, Dst: q.Dst, Port: q.Port, Asked: true, FromOthers: time.Second}
	switch rapid.IntRange(0, 9).Draw(t, "exchange") {
	case 0:
		w.impaired = true
		u.Error = "the agent of " + q.From + " did not answer"
		return u
	case 1:
		w.impaired = true
		u.Asked, u.Unasked = false, "no answer"
	case 2:
		w.impaired = true
		u.FromOthers = -1
	}
	rtt := rapid.SampledFrom([]time.Duration{200 * time.Microsecond, 5 * time.Millisecond, 100 * time.Millisecond}).Draw(t, "rtt")
	for n, a := range w.evidence.Attempts {
		if w.now[n] < w.truths[n].reach && a.Quiet >= max(w.evidence.Patience/3, 4*rtt) {
			rtt = w.evidence.Patience
		}
	}
	lossy := rapid.SampledFrom([]int{0, 0, 5, 30}).Draw(t, "loss in the exchange")
	there, back := w.between(q.From, q.To), w.between(q.To, q.From)
	u.Sizes = []UnderlaySize{{Bytes: q.Small}}
	for port := range 32 {
		p := UnderlayPort{SourcePort: uint16(40000 + port), Sent: 4}
		for n := range p.Sent {
			if gone := there == dark || there == member && port%2 == 0; gone || (7*port+31*n)%100 < lossy {
				continue
			}
			p.Arrived++
			if back == dark || back == member && port%3 == 0 {
				continue
			}
			p.Answered, p.RTT = p.Answered+1, rtt
		}
		if !u.Asked {
			p.Arrived = p.Answered
		}
		u.Sizes[0].Ports = append(u.Sizes[0].Ports, p)
	}
	return u
}

// between is what lies between two hosts.
func (w *world) between(from, to string) wire {
	if i := w.at; w.hard == byNet && i+1 < len(w.path.Points) && w.path.Points[i].Host == from && w.path.Points[i+1].Host == to {
		return w.wire
	}
	return passes
}

// listen draws which attempts will have their answers recognised whatever their ToS.
func (w *world) listen(t *rapid.T, attempts int) {
	armedFrom := rapid.SampledFrom([]int{0, 0, 1, 1, 99}).Draw(t, "armed from")
	for n := range attempts {
		from, cut := w.goneFrom[w.path.To.Host]
		w.deaf = append(w.deaf, n < armedFrom || cut && n >= from)
		full := map[Place]bool{}
		for _, end := range []plan.End{w.path.From, w.path.To} {
			full[Place{end.Host, end.Bridge}] = rapid.IntRange(0, 3).Draw(t, "full") == 0
		}
		w.full = append(w.full, full)
	}
}

// knows says that the hook where an end is attached is there at attempt n, and knows answers
// whatever their ToS.
func (w *world) knows(n int, end *plan.End) bool {
	place := Place{end.Host, end.Bridge}
	hooked := slices.ContainsFunc(w.path.Points, func(p plan.Expected) bool {
		return p.Host == end.Host && p.Bridge == end.Bridge && p.Kind == stain.FromInstance && p.Absent == ""
	})
	if !hooked || slices.Contains(w.gaps[place], n) {
		return false
	}
	if w.scheme == stain.TCP {
		return end == &w.path.To && !w.deaf[n]
	}
	return !w.full[n][place]
}

// stained returns the first point at which the answer of probe n bears the stain; past the last
// one if it never does.
func (w *world) stained(n int, tr truth) int {
	at := w.guest + 1
	reached := tr.reach >= w.beforeDelivery()
	for ; at < len(w.path.Points); at++ {
		p := &w.path.Points[at]
		home := p.Host == w.path.From.Host && p.Bridge == w.path.From.Bridge
		away := p.Host == w.path.To.Host && p.Bridge == w.path.To.Bridge && reached
		if !w.clears || away && w.knows(n, &w.path.To) || home && w.scheme == stain.ICMP && w.knows(n, &w.path.From) {
			break
		}
	}
	return at
}

// plain says whether probe n leaves nothing to doubt, while no agent fails.
func (w *world) plain(n int, tr truth, stained int) bool {
	last := -1 // that can see, on the way there
	for i, p := range w.path.Points {
		if p.Direction == plan.Forward && p.Absent == "" {
			last = i
		}
	}
	switch {
	case w.path.NoTouch || tr.fate == unsent || tr.fate != answered && tr.reach < last:
		return true
	case tr.fate == answered || tr.reach > w.guest:
		return stained == w.guest+1 // all that it passed could see it
	case w.path.To.Absent != "" && tr.reach == w.beforeDelivery():
		return true
	}
	told := w.scheme == stain.TCP || slices.ContainsFunc(w.path.Points, func(p plan.Expected) bool { // whether the request found room
		return p.Direction == plan.Forward && p.Kind != stain.ToInstance && p.Host == w.path.To.Host && p.Bridge == w.path.To.Bridge && p.Absent == ""
	})
	return told && w.knows(n, &w.path.To)
}

// send lets probe n go its way.
func (w *world) send(t *rapid.T, n int) truth {
	source := Place{w.path.Inject.Host, w.path.Inject.Bridge}
	if from, cut := w.goneFrom[source.Host]; cut && n >= from {
		return truth{fate: unsent, reach: -1}
	}
	if slices.Contains(w.gaps[source], n) && !w.late[source] {
		return truth{fate: unsent, reach: -1} // the flow that lets it in is the hook's
	}
	for i := range w.path.Points {
		switch {
		case w.hard != arrived && i == w.at:
			return truth{fate: w.hard, reach: i}
		case i == len(w.path.Points)-1:
			return truth{fate: arrived, reach: i}
		case w.noLink && i >= w.beforeDelivery():
		case i != w.guest && rapid.IntRange(0, 19).Draw(t, fmt.Sprintf("loss of %d after %d", n, i)) == 0:
			return truth{fate: byNet, reach: i}
		}
	}
	panic("a path without points")
}

// see is what agents see of it.
func (w *world) see(t *rapid.T, tb testing.TB, n int, tr truth, stained int, lost map[Place]uint64) Attempt {
	a := Attempt{Injected: true, Armed: w.scheme == stain.TCP && !w.deaf[n]}
	if from, cut := w.goneFrom[w.path.Inject.Host]; cut && n >= from {
		a.Injected = false
	}
	passed := func(i int) bool {
		if tr.fate == answered && i > w.guest && w.path.Points[i].Host == w.path.From.Host {
			return true
		}
		return i <= tr.reach
	}
	recognised := func(i int) bool {
		return i <= w.guest || i >= stained || w.scheme == stain.TCP && w.path.Points[i].Kind == stain.ToInstance
	}
	for i, pt := range w.path.Points {
		place := Place{pt.Host, pt.Bridge}
		from, cut := w.goneFrom[pt.Host]
		switch {
		case !passed(i) || !recognised(i) || pt.Absent != "" || cut && n >= from:
			continue
		case slices.Contains(w.gaps[place], n) && !(w.late[place] && pt.Direction == plan.Forward):
			continue
		case w.lossy[place] && rapid.Bool().Draw(t, "sample lost"):
			if w.quietly[place] && pt.Kind != stain.ToInstance { // the program at the tap counts for itself
				if w.unread[place] == nil {
					w.unread[place] = map[stain.Kind]uint64{}
				}
				w.unread[place][pt.Kind]++
				continue
			}
			lost[place]++
			continue
		}
		sample := sampleAt(tb, w.path, i, 0)
		if tr.fate == answered && sample.TunSrc.IsValid() && i > w.guest {
			sample.TunSrc = netip.MustParseAddr(vteps["hv2"])
		}
		sample.NoReply = w.scheme == stain.ICMP && w.full[n][place] && pt.Direction == plan.Forward && pt.Kind != stain.ToInstance
		a.Seen = append(a.Seen, sample)
		if rapid.IntRange(0, 15).Draw(t, "twice") == 0 {
			a.Seen = append(a.Seen, sampleAt(tb, w.path, i, 9))
		}
	}
	if (tr.fate == astray || tr.fate == answered) && !w.hidden {
		a.Stray = append(a.Stray, Sighting{"hv2", "br-int", stain.FromTunnel, plan.Forward, 0})
		if tr.fate == answered && !w.clears {
			a.Stray = append(a.Stray, Sighting{"hv2", "br-int", stain.FromInstance, plan.Reply, 0})
		}
	}
	return a
}

// audits attest every impairment, those too that cost no sample.
func (w *world) audits(lost map[Place]uint64) map[Place]Window {
	hooks := live(w.path)
	for place, win := range hooks {
		if _, gap := w.gaps[place]; gap {
			win.After.Epoch++
		}
		win.After.Lost += lost[place]
		win.Before.Counts, win.After.Counts = map[stain.Kind]Count{}, map[stain.Kind]Count{}
		for _, kind := range []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToTunnel} {
			win.Before.Counts[kind] = Count{100, 30, 30}
			win.After.Counts[kind] = Count{150 + w.unread[place][kind], 80, 80}
		}
		if from, cut := w.goneFrom[place.Host]; cut {
			if win.After = nil; from == 0 {
				win.Before = nil
			}
		}
		hooks[place] = win
	}
	return hooks
}

// explain answers as the host's flows would: they know of faults in flows and of tunnels that
// lead astray, and nothing of losses. It may fail.
func (w *world) explain(t *rapid.T, q *NeedExplain) *Explanation {
	if _, cut := w.goneFrom[q.Host]; cut {
		t.Fatalf("asked %s, whose agent is gone", q.Host)
	}
	if rapid.IntRange(0, 5).Draw(t, "explanation") == 0 {
		w.impaired = true
		if rapid.Bool().Draw(t, "no answer") {
			return nil
		}
		return &Explanation{Point: q.Point, Error: "ovs-appctl: timeout"}
	}
	direction := w.path.Points[q.Point].Direction
	if why := w.misread(q); why != "" {
		return &Explanation{Point: q.Point, Outcome: Dropped, Flow: flow(q.Bridge, 0, 3, "another packet: "+why)}
	}
	_, receiver := w.evidence.ends(direction)
	for i := q.Point; ; i++ {
		pt := &w.path.Points[i]
		if i == w.at && (w.hard == byFlow || w.hard == byRule) {
			f := flow(pt.Bridge, 60, 90, "ip,nw_dst=10.0.1.13")
			if w.hard == byRule {
				f = flow(pt.Bridge, 82, 0, "")
			}
			return &Explanation{Point: q.Point, Outcome: Dropped, Flow: f}
		}
		if i+1 < len(w.path.Points) && w.path.Points[i+1].Host == pt.Host && w.path.Points[i+1].Direction == direction {
			continue
		}
		x := &Explanation{Point: q.Point, Outcome: Tunnelled, TunnelRemote: vteps[receiver.Host], Port: "gre-" + receiver.Host, TunnelID: pt.TunID}
		switch {
		case pt.Host == receiver.Host:
			x = &Explanation{Point: q.Point, Outcome: Delivered, Port: receiver.Port}
		case i == w.at && (w.hard == astray || w.hard == answered):
			x.TunnelRemote = vteps["hv2"]
		}
		return flood(t, x, receiver)
	}
}

// flood is an explanation among other ways out, one of which the agent may take for the packet's.
func flood(t *rapid.T, x *Explanation, receiver *plan.End) *Explanation {
	if rapid.IntRange(0, 2).Draw(t, "flooded") > 0 {
		return x
	}
	x.Exits = []Exit{{Port: x.Port, Remote: x.TunnelRemote, TunnelID: x.TunnelID}, {Port: "br-int"}}
	for _, host := range []string{"hv2", "hv4"} {
		if host != receiver.Host {
			x.Exits = append(x.Exits, Exit{Port: "gre-" + host, Remote: vteps[host], TunnelID: 1001})
		}
	}
	x.Exits = rapid.Permutation(x.Exits).Draw(t, "exits")
	x.Outcome, x.Port, x.TunnelRemote, x.TunnelID = Delivered, "", "", 0
	var ports []string
	for _, e := range x.Exits {
		switch {
		case e.Remote == "":
			ports = append(ports, e.Port)
		case x.Outcome == Delivered:
			x.Outcome, x.Port, x.TunnelRemote, x.TunnelID = Tunnelled, e.Port, e.Remote, e.TunnelID
		}
	}
	if x.Outcome == Delivered {
		x.Port = strings.Join(ports, ",")
	}
	return x
}

// misread says what keeps a question from being about the packet: between a host's bridges it bears what is not
// asked about, and without its tunnel it is none of the network's. Flows drop that.
func (w *world) misread(q *NeedExplain) string {
	entry := q.Point
	for entry > 0 && w.path.Points[entry-1].Host == q.Host && w.path.Points[entry-1].Direction == w.path.Points[q.Point].Direction {
		entry--
	}
	at := &w.path.Points[entry]
	switch {
	case q.Bridge != at.Bridge:
		return "it comes in by " + at.Bridge
	case at.Kind == stain.FromTunnel && (!q.TunSrc.IsValid() || q.TunID != at.TunID):
		return "it comes in by a tunnel"
	case q.InPort == 0 && q.Port == "":
		return "it comes in by a port"
	}
	return ""
}

// place finds a point of a segment; -1 is before the first.
func (w *world) place(p *plan.Expected) int {
	if p == nil {
		return -1
	}
	i, ok := w.path.Index(p.Host, p.Bridge, p.Kind, p.Direction)
	if !ok {
		return -2
	}
	return i
}

// best is the probe that came furthest.
func (w *world) best() truth {
	best := truth{fate: unsent, reach: -1}
	for _, tr := range w.truths {
		if tr.fate == arrived {
			return tr
		}
		if tr.reach > best.reach {
			best = tr
		}
	}
	return best
}

// suffered says that some probe met one of these fates, within from and to.
func (w *world) suffered(from, to int, fates ...fate) bool {
	for n, tr := range w.truths {
		// What is on its way to where it will be lost has come to nowhere else.
		for _, at := range []int{tr.reach, w.now[n]} {
			if slices.Contains(fates, tr.fate) && from <= at && at < to {
				return true
			}
		}
	}
	return false
}

// check holds a result against the truth. explained is whether all was asked that could be.
func (w *world) check(t *rapid.T, r *Result, explained bool) {
	from, to := -1, len(w.path.Points)
	if r.Segment != nil {
		from, to = w.place(r.Segment.From), w.place(&r.Segment.To)
	}
	whole := slices.ContainsFunc(w.truths, func(tr truth) bool { return tr.fate == arrived })
	// Of several, one may have been answered unseen. Another that was provably lost is a fault all
	// the same, if it was the last word.
	plainly := slices.ContainsFunc(w.truths, func(tr truth) bool { return tr.fate == arrived && tr.plain })
	wrong := func(why string) {
		t.Fatalf("%s\nverdict %s\ntruth %v, hard %v after %d, impaired %v", why, show(r), w.truths, w.hard, w.at, w.impaired)
	}
	switch r.Verdict {
	case Healthy:
		if !whole {
			wrong("wrong healthy")
		}
	case Faulty:
		if r.Kind == CauseLoss && r.Loss != nil && r.Loss.Decision == sequential.Above {
			w.checkLoss(r, from, to, wrong)
			return
		}
		network := []fate{byFlow, byNet, astray, answered}
		blockedFact := w.path.Blocked != nil && (w.path.Blocked.Absent() || w.path.NoTouch && w.path.To.Absent != "")
		if plainly || !blockedFact && !w.suffered(from, to, network...) {
			wrong("wrong faulty")
		}
	case Silent:
		if whole || !w.suffered(from, to, byGuest) && !(w.path.NoTouch && w.noLink && w.suffered(to, to+1, byGuest)) {
			wrong("wrong silent")
		}
	case PolicyDrop:
		// Lost by chance short of the rule, unseen by us: the rule denies the pair all the same.
		if whole || w.hard != byRule || !w.suffered(from, to, byRule, byNet) {
			wrong("wrong policy")
		}
	case Unknown:
		if explained && !w.impaired {
			wrong("unknown, though all could be seen")
		}
	default:
		wrong("no verdict")
	}
	w.checkWire(r, wrong)
	if explained && !w.impaired && len(w.truths) > 0 {
		w.checkExact(r, from, to, wrong)
	}
}

// checkLoss: what a test finds is lost was, and so much is too much.
func (w *world) checkLoss(r *Result, from, to int, wrong func(string)) {
	lost, came, here := 0, w.evidence.Arrived, 0
	for _, tr := range w.truths {
		switch {
		case tr.fate == arrived:
			came++
		case tr.fate != unsent && tr.fate != byGuest:
			if lost++; from <= tr.reach && tr.reach < to {
				here++
			}
		}
	}
	l := r.Loss
	if l.all() > lost || l.Probes+l.Began-l.all() > came || here == 0 || w.evidence.Test.Decide(l.Probes+l.Began, l.all()) != sequential.Above {
		wrong(fmt.Sprintf("%d of %d probes are lost, %d here; %d arrived", lost, len(w.truths), here, came))
	}
}

// checkWire: what is said of the network between two hosts is so.
func (w *world) checkWire(r *Result, wrong func(string)) {
	if r.Underlay == nil || r.Verdict != Faulty {
		return
	}
	is := w.between(r.Underlay.From, r.Underlay.To)
	if r.Kind == CauseUnderlay && is != dark || r.Kind == CauseUnderlayMember && is != member || r.Kind == CauseEntrypoint && is != passes {
		wrong(fmt.Sprintf("of a wire that is %d", is))
	}
}

// causesOf are the kinds of cause that fit a fate, with all to be seen.
var causesOf = map[fate][]CauseKind{
	byFlow: {CauseFlow}, byRule: {CauseSecurityRule}, byGuest: {CauseGuestSilent, CauseGuestDown},
	byNet: {CauseBetweenHosts, CauseSwitch, CauseUnderlay, CauseUnderlayMember, CauseEntrypoint, CauseLoss}, astray: {CauseStaleVTEP}, answered: {CauseImpostor, CauseStaleVTEP},
}

// checkExact: with all to be seen, verdict and segment are those of the probe that came furthest.
func (w *world) checkExact(r *Result, from, to int, wrong func(string)) {
	best := w.best()
	want := map[fate]Verdict{arrived: Healthy, byFlow: Faulty, byNet: Faulty, astray: Faulty, answered: Faulty, byRule: PolicyDrop, byGuest: Silent}[best.fate]
	if lost, all := w.counted(); want == Healthy && w.evidence.Test != nil && all > 0 && lost > 0 && w.evidence.Test.Decide(all, lost) == sequential.Above {
		if r.Verdict != Faulty && r.Verdict != Unknown { // whether the guest lost it may not be known
			wrong(fmt.Sprintf("%d of %d probes are lost: want faulty", lost, all))
		}
		return
	}
	if r.Verdict != want {
		if best.fate == byNet && best.reach == w.at && w.hard == byRule && r.Verdict == PolicyDrop {
			return // lost by chance where the rule would have dropped it
		}
		wrong("want " + want.String())
	}
	whole := w.path.To.Absent == "" && w.path.From.Gap == "" && w.path.To.Gap == "" // else there is another fault beside
	if fits := causesOf[best.fate]; whole && len(fits) > 0 && !slices.Contains(fits, r.Kind) {
		wrong(fmt.Sprintf("cause %s, want one of %v", r.Kind, fits))
	}
	if w.path.NoTouch && best.fate == byGuest && best.reach == len(w.path.Points)-1 {
		best.reach-- // it was seen leaving by a port that is down
	}
	if want != Healthy && (from != best.reach || to != best.reach+1) {
		wrong(fmt.Sprintf("segment from %d to %d, want from %d to %d", from, to, best.reach, best.reach+1))
	}
}

// counted are the probes that were lost, and all, where nothing was to be doubted of any; else none.
func (w *world) counted() (lost, all int) {
	all = w.evidence.Arrived
	for _, tr := range w.truths {
		if !tr.plain {
			return 0, 0
		}
		if all++; tr.fate != arrived {
			lost++
		}
	}
	return lost, all
}

// judged runs a world and judges it, as a run does: with an explanation where one is wanted.
func judged(rt *rapid.T, t *testing.T, w *world) Result {
	w.run(rt, t)
	r := Judge(w.evidence)
	w.check(rt, &r, false)
	if r.Need != nil {
		w.evidence.Explanation = w.explain(rt, r.Need)
		first := r
		r = Judge(w.evidence)
		if !first.Need.Decides && r.Verdict != first.Verdict && first.Wait == 0 {
			rt.Fatalf("an answer that was not to decide turned %s into %s", first.Verdict, show(&r))
		}
	}
	if r.NeedUnderlay != nil {
		w.check(rt, &r, false)
		w.evidence.Underlay = w.network(rt, r.NeedUnderlay)
		r = Judge(w.evidence)
	}
	w.check(rt, &r, true)
	w.checkWait(rt, &r)
	w.checkRoutes(rt, &r)
	if why := unshown(&r); why != "" {
		rt.Fatalf("%s: %s", why, show(&r))
	}
	if why := kindless(&r); why != "" {
		rt.Fatalf("%s: %s", why, show(&r))
	}
	return r
}

// checkWait: who has waited for as long as was said need not wait for the same verdict any more.
func (w *world) checkWait(t *rapid.T, r *Result) {
	if r.Wait == 0 {
		return
	}
	e := w.evidence
	e.Attempts = slices.Clone(e.Attempts)
	for i := range e.Attempts {
		e.Attempts[i].Quiet += r.Wait
	}
	if again := Judge(e); again.Wait > 0 {
		t.Fatalf("after %v there are %v to wait: %s", r.Wait, again.Wait, show(&again))
	}
}

func TestNeverWrong(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	kinds := map[CauseKind]int{} // of all
	t.Cleanup(func() {
		for _, k := range []CauseKind{CauseUnderlay, CauseUnderlayMember, CauseEntrypoint, CauseLoss, CauseInjection} {
			if kinds[k] == 0 && !t.Failed() {
				t.Errorf("no world led to %s: the simulator has gone blunt", k)
			}
		}
		t.Logf("causes: %v", kinds)
	})
	for name, h := range map[string]how{
		"tcp": {scheme: stain.TCP}, "icmp": {scheme: stain.ICMP},
		"tcp, no touch": {scheme: stain.TCP, noTouch: true}, "icmp, no touch": {scheme: stain.ICMP, noTouch: true},
		"tcp, routes": {scheme: stain.TCP, routes: true}, "icmp, routes": {scheme: stain.ICMP, routes: true},
		"tcp, no touch, routes": {scheme: stain.TCP, noTouch: true, routes: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			verdicts, waits := map[Verdict]int{}, 0
			// A check is 100 worlds, unless -rapid.checks says more. One in 50 ends in policy, the
			// rarest verdict, so that 3,000 miss none of them by chance.
			for range 30 {
				rapid.Check(t, func(rt *rapid.T) {
					r := judged(rt, t, build(rt, t, h))
					verdicts[r.Verdict]++
					mu.Lock()
					kinds[r.Kind]++
					mu.Unlock()
					if r.Wait > 0 {
						waits++
					}
				})
			}
			for _, v := range []Verdict{Healthy, Faulty, Silent, PolicyDrop, Unknown} {
				if verdicts[v] == 0 && !t.Failed() {
					t.Errorf("no world led to %s: the simulator has gone blunt", v)
				}
			}
			if waits == 0 && !t.Failed() {
				t.Error("no world led to one that may be late: the simulator has gone blunt")
			}
			t.Logf("verdicts: %v, %d may be late", verdicts, waits)
		})
	}
}

// TestAnsweredStaysAnswered: whatever flows say afterwards, since they may have changed, and
// whatever we failed to see, a probe that was answered is never judged lost or unanswered.
func TestAnsweredStaysAnswered(t *testing.T) {
	t.Parallel()
	verdicts := map[Verdict]int{}
	for range 60 {
		rapid.Check(t, func(rt *rapid.T) {
			w := build(rt, t, how{scheme: rapid.SampledFrom([]stain.Scheme{stain.TCP, stain.ICMP}).Draw(rt, "scheme"), routes: rapid.Bool().Draw(rt, "routes")})
			if w.path.To.Absent != "" || w.noLink || w.path.From.Gap != "" || w.path.To.Gap != "" {
				return // nothing can be answered here
			}
			w.hard = arrived
			w.run(rt, t)
			if len(w.truths) == 0 || slices.ContainsFunc(w.truths, func(tr truth) bool { return tr.fate != arrived }) {
				return
			}
			if slices.ContainsFunc(w.now, func(now int) bool { return now < len(w.path.Points)-1 }) {
				return // not yet
			}
			r := Judge(w.evidence)
			if r.Need != nil {
				w.evidence.Explanation = w.invent(rt, r.Need)
				r = Judge(w.evidence)
			}
			if r.NeedUnderlay != nil {
				w.hard, w.at, w.wire = byNet, w.crossing, wire(rapid.IntRange(int(passes), int(member)).Draw(rt, "the wire by now"))
				w.evidence.Underlay = w.network(rt, r.NeedUnderlay)
				r = Judge(w.evidence)
			}
			if r.Verdict != Healthy && r.Verdict != Unknown {
				rt.Fatalf("%s\ntruth %v, told %+v", show(&r), w.truths, w.evidence.Explanation)
			}
			verdicts[r.Verdict]++
		})
	}
	if (verdicts[Healthy] == 0 || verdicts[Unknown] == 0) && !t.Failed() {
		t.Errorf("verdicts: %v: the simulator has gone blunt", verdicts)
	}
	t.Logf("verdicts: %v", verdicts)
}

// invent is what the flows of the host might do by now.
func (w *world) invent(t *rapid.T, q *NeedExplain) *Explanation {
	_, receiver := w.evidence.ends(w.path.Points[q.Point].Direction)
	bridge := rapid.SampledFrom([]string{"br-int", "br-tun"}).Draw(t, "bridge")
	switch x := (Explanation{Point: q.Point}); rapid.IntRange(0, 5).Draw(t, "by now") {
	case 0:
		x.Outcome, x.Flow = Dropped, flow(bridge, 82, 0, "")
		return &x
	case 1:
		x.Outcome, x.Flow = Dropped, flow(bridge, 60, 90, "ip,nw_dst=10.0.1.13")
		return &x
	case 2:
		x.Outcome = Dropped
		return &x
	case 3:
		x.Outcome, x.Port = Delivered, receiver.Port
		return &x
	case 4:
		x.Outcome, x.Port = Delivered, "tap-x"
		return &x
	default:
		x.Outcome, x.Port, x.TunnelRemote = Tunnelled, "gre-hv2", vteps["hv2"]
		return &x
	}
}
