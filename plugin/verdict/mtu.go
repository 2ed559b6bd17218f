package verdict

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// TriedMTU is an exchange of large packets, and what it showed.
type TriedMTU struct {
	Need   *NeedUnderlay
	Showed *Underlay
}

// NeedMTU returns the exchanges that show whether packets as large as a pair's instances may send pass between their
// hosts: one for each tunnel that the pair may take, there and back. How much a tunnel adds is its own, and which one is
// taken the flows tell, or where the pair's probes came in. None where the two share a host, or none can be made.
func NeedMTU(p *plan.Path) (needs []*NeedUnderlay) {
	if !apart(p) {
		return nil
	}
	for _, ends := range [][2]*plan.End{{&p.From, &p.To}, {&p.To, &p.From}} {
		for _, t := range tunnelsTo(ends[0], ends[1]) {
			if n, _ := needLarge(ends[0], ends[1], t); n != nil {
				needs = append(needs, n)
			}
		}
	}
	return needs
}

// apart says that a pair's instances are on two hosts that are known.
func apart(p *plan.Path) bool {
	return p.From.Host != p.To.Host && p.From.Host != "" && p.To.Host != ""
}

func needLarge(from, to *plan.End, t inventory.Tunnel) (n *NeedUnderlay, why string) {
	n, why = between(from, to, t, t.Remote)
	switch {
	case n == nil || n.Large > 0:
		return n, why
	case overhead(t) == 0:
		return nil, fmt.Sprintf("how much %s adds to a packet, by %s of %s, is not known", strings.ToUpper(t.Type), t.Port, from.Host)
	}
	return nil, "the MTU of the instances' ports is not known"
}

// Covers says that an exchange tells what another is to: all the same, or (reply) what it is to show by its own packets is
// shown by the first one's answers.
func (n *NeedUnderlay) Covers(o *NeedUnderlay) (reply, ok bool) {
	if n.Large != o.Large || n.By.ToS != o.By.ToS || n.By.Fragments != o.By.Fragments {
		return false, false
	}
	if n.From == o.From && n.To == o.To {
		return false, n.Src == o.Src && n.Dst == o.Dst
	}
	// An address that is not known is what the host would use.
	src, dst := n.Src == o.Dst || !n.Src.IsValid(), n.Dst == o.Src || !o.Src.IsValid()
	return true, n.From == o.To && n.To == o.From && src && dst
}

// passage is what became of large packets.
type passage uint8

const (
	notKnown passage = iota
	fits
	tooNarrow
)

// largeFate is what became of large packets in one direction, and why it is not known or how they are lost.
type largeFate struct {
	passage
	words string
	u     *Underlay     // that shows it
	asks  *NeedUnderlay // what would tell more; nil where nothing would
}

// MoreMTU returns what is to be tried besides before WithMTU can tell: where large packets of an exchange are lost on their
// way, none is answered, and nothing is known of the way back, which a pair may take by that tunnel and there by another.
func MoreMTU(r Result, p *plan.Path, tried []TriedMTU) (needs []*NeedUnderlay) {
	if !apart(p) || r.Verdict != Healthy {
		return nil
	}
	for _, f := range largeBoth(r, p, tried) {
		if f.passage == tooNarrow {
			return nil
		}
		if f.asks != nil {
			needs = append(needs, f.asks)
		}
	}
	return needs
}

// largeBoth is what became of large packets there and back.
func largeBoth(r Result, p *plan.Path, tried []TriedMTU) [2]largeFate {
	return [2]largeFate{
		largeBetween(&p.From, &p.To, taken(r.Samples, plan.Forward, &p.From, &p.To), tried),
		largeBetween(&p.To, &p.From, taken(r.Samples, plan.Reply, &p.To, &p.From), tried),
	}
}

// WithMTU adds to the verdict on a pair what exchanges of large packets between its hosts showed, by those tunnels that
// its own packets are known to take, or else may.
func WithMTU(r Result, p *plan.Path, tried []TriedMTU) Result {
	if !apart(p) {
		return r
	}
	ways := largeBoth(r, p, tried)
	for i, f := range ways {
		switch {
		case f.passage != tooNarrow:
		case r.Verdict != Healthy:
			if !strings.Contains(r.Cause, f.words) {
				r.Cause = join(r.Cause, "besides, "+f.words)
			}
			return r
		default:
			r.Verdict, r.Kind, r.Underlay = Faulty, CausePathMTU, f.u
			r.Segment, r.Host = crossing(p, i == 0)
			r.Cause = join("path MTU: "+f.words, r.Cause)
			r.try(f.u)
			return r
		}
	}
	for _, f := range ways {
		if r.Verdict == Healthy && f.passage == notKnown {
			r.Verdict, r.Host, r.Kind, r.Underlay = Unknown, p.From.Host, CauseUnseen, f.u
			r.Cause = join("small packets pass both ways; whether large ones do "+f.words, r.Cause)
			r.try(f.u)
		}
	}
	return r
}

// taken are the tunnels from one host to another that the judged packet may have been in, by how it came out; all, where
// that was not seen.
func taken(samples []Aligned, d plan.Direction, from, to *plan.End) []inventory.Tunnel {
	all := tunnelsTo(from, to)
	for i := range samples {
		s := &samples[i]
		if !s.Seen || s.Direction != d || s.Host != to.Host || s.Kind != stain.FromTunnel {
			continue
		}
		in, ok := tunnelAt(to, s.Bridge, s.Sample.InPort)
		if !ok {
			continue
		}
		all = those(all, func(t inventory.Tunnel) bool { return t.Type == in.Type })
		all = those(all, func(t inventory.Tunnel) bool {
			src, dst := t.Local, t.Remote
			if !src.IsValid() {
				src = s.Sample.TunSrc
			}
			return (src == s.Sample.TunSrc || !s.Sample.TunSrc.IsValid()) && (!src.IsValid() || reaches(in, dst, src))
		})
	}
	return all
}

// those are tunnels of which something is true; all, if it is of none.
func those(all []inventory.Tunnel, is func(inventory.Tunnel) bool) (some []inventory.Tunnel) {
	for _, t := range all {
		if is(t) {
			some = append(some, t)
		}
	}
	if len(some) == 0 {
		return all
	}
	return some
}

// largeBetween is what became of large packets from one host to another by tunnels of which the pair takes one. Only what
// they have in common is known of it.
func largeBetween(from, to *plan.End, tunnels []inventory.Tunnel, tried []TriedMTU) largeFate {
	if len(tunnels) == 0 {
		return largeFate{words: fmt.Sprintf("could not be tried: no tunnel from %s to %s is known", from.Host, to.Host)}
	}
	var fates []largeFate
	for _, t := range tunnels {
		f := largeBy(from, to, t, tried)
		if f.passage == notKnown {
			return f
		}
		fates = append(fates, f)
	}
	for i, f := range fates {
		if f.passage == fates[0].passage {
			continue
		}
		if f.passage == fits {
			i, f = 0, fates[0]
		}
		return largeFate{words: fmt.Sprintf("is not known: which tunnel of %s it takes was not seen, and by %s %s, by another they pass",
			from.Host, tunnels[i].Port, f.words), u: f.u}
	}
	return fates[0]
}

// largeBy is what became of large packets by one tunnel.
func largeBy(from, to *plan.End, t inventory.Tunnel, tried []TriedMTU) largeFate {
	need, why := needLarge(from, to, t)
	if need == nil {
		return largeFate{words: "could not be tried: " + why}
	}
	best := largeFate{words: "could not be tried"}
	for _, x := range tried {
		reply, ok := x.Need.Covers(need)
		switch {
		case !ok || x.Showed == nil:
			continue
		case x.Showed.Error != "":
			best = largeFate{words: "could not be tried: " + x.Showed.Error}
		default:
			best = x.Showed.large(reply, t.Fragments)
			if best.passage == notKnown && reply && x.Showed.large(false, inventory.NotTold).passage == tooNarrow {
				best.asks = need
			}
		}
		if best.passage != notKnown || !reply {
			return best // what was asked the other way may be known by one that is to tell just that
		}
	}
	return best
}

// large is what became of the largest packets of an exchange, there or (reply) back; of whole ones, unless the tunnel
// lets them be fragmented. Of the one back only its host tells that.
func (u *Underlay) large(reply bool, fragments inventory.Told) largeFate {
	last := len(u.Sizes) - 1
	if last < 1 {
		return largeFate{words: "is not known: no large ones were sent", u: u}
	}
	may := u.MayFragment
	if reply && fragments != inventory.NotTold {
		may = fragments == inventory.Yes
	}
	if may {
		last = 0
	} else if words, ok := u.narrowBy(reply); ok {
		return largeFate{passage: tooNarrow, words: words, u: u}
	} else if words, ok := u.living(reply).narrowBy(reply); ok {
		return largeFate{passage: tooNarrow, words: words, u: u}
	}
	if t := u.traffic(reply, last); t.sent > 0 && t.dead == 0 {
		return largeFate{passage: fits, u: u}
	}
	return largeFate{words: "is not known: " + u.unclear(), u: u}
}

// living is an exchange without the source ports from which not even small packets pass, where these pass from others and it is known
// which came: the pair's own small packets pass, by a way that is none of those.
func (u *Underlay) living(reply bool) *Underlay {
	if !u.Asked || !u.traffic(reply, 0).some() {
		return u
	}
	part := *u
	part.Sizes = slices.Clone(u.Sizes)
	for i := range part.Sizes {
		part.Sizes[i].Ports = nil
		for k := range u.Sizes[i].Ports {
			if sent, came := u.Sizes[0].Ports[k].passed(reply); sent == 0 || came > 0 {
				part.Sizes[i].Ports = append(part.Sizes[i].Ports, u.Sizes[i].Ports[k])
			}
		}
	}
	return &part
}

// unclear words why neither is known of large packets, that they pass or that they do not.
func (u *Underlay) unclear() string {
	what, words := u.small()
	if what != passable {
		return words
	}
	last := len(u.Sizes) - 1
	if u.Untried() {
		return fmt.Sprintf("%s, and none was answered in time, so that none of %d bytes was sent", words, u.Sizes[last].Bytes)
	}
	there, back := u.forward(last), u.reply(last)
	return fmt.Sprintf("%s; of packets of %d bytes, %d of %d source ports had none through", words, u.Sizes[last].Bytes,
		max(there.dead, back.dead), there.ports)
}

// crossing is the segment of a path between its hosts, and the host that sends there.
func crossing(p *plan.Path, there bool) (*Segment, string) {
	d, from, to := plan.Forward, p.From.Host, p.To.Host
	if !there {
		d, from, to = plan.Reply, to, from
	}
	points := p.Points
	if !there && p.Back != nil {
		points, d = p.Back.Points, plan.Forward
	}
	var s *Segment
	for i := range points {
		switch pt := &points[i]; {
		case pt.Direction == d && pt.Host == from:
			last := *pt
			s = &Segment{From: &last}
		case pt.Direction == d && pt.Host == to && s != nil:
			s.To = *pt
			if !there {
				s.From.Direction, s.To.Direction = plan.Reply, plan.Reply
			}
			return s, from
		}
	}
	return nil, from
}
