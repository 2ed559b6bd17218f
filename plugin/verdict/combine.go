package verdict

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Track is one way of probing a pair, judged: a path and a scheme.
type Track struct {
	Path *plan.Path
	// Scheme is how its probes were stained; zero is tcp.
	Scheme stain.Scheme
	Result Result
}

// Combine returns the verdict on a pair from those of its tracks, which come in this order: tcp
// there, in no-touch tcp back, icmp there, in no-touch icmp back; only those that were run. asked
// is the scheme that the user asked for, 0 if it is to be found out.
//
// There and back of no-touch are healthy if both are; otherwise the worse one's verdict is the
// pair's. What is found out goes by these rules, tcp being what tenants use:
//
//   - tcp healthy, faulty or policy is the verdict; what became of icmp is noted. But a fault
//     that lies in a switch whose flows pass the packet, were not asked, or drop it as one of no connection, while icmp is healthy, may be ours: all
//     probes by tcp between two instances are one connection to what tracks connections, which
//     drops answers that do not fit what it remembers. An echo is a connection of its own. By tcp
//     alone such a pair is unknown.
//     What tcp loses in part, as a share of its probes, is the same: icmp is tested too then, and
//     only what both lose inside a switch is a fault.
//   - A fault at the end of a tunnel, where UDP passes between the same hosts, is none if icmp passes the tunnel.
//   - tcp silent, icmp healthy is healthy: the guest is there, and drops what is for that port.
//     Otherwise it is silent; but by tcp alone unknown where the guest listens and answers some, since it may remember an
//     earlier probe.
//   - tcp unknown, icmp healthy or faulty is what icmp says, unless it was tried so seldom that what is lost
//     may be chance. But that ping is denied or not answered says nothing of a pair whose TCP answers we may
//     have missed: it is unknown.
func Combine(tracks []Track, asked stain.Scheme) Result {
	probes := 0
	for i := range tracks {
		probes += tracks[i].Result.Probes
	}
	first := 0 // of icmp
	for first < len(tracks) && tracks[first].Scheme != stain.ICMP {
		first++
	}
	tcp, icmp := tracks[:first], tracks[first:]
	var r Result
	switch {
	case len(tracks) == 0:
		r = Result{Verdict: Unknown, Cause: "no probe was sent", Kind: CauseInjection}
	case len(icmp) == 0 || asked == stain.TCP && len(tcp) > 0:
		r = ours(bothWays(tcp))
		if asked == 0 {
			r.SchemeReason = alone(r.Verdict, r.NoTouch)
		}
	case len(tcp) == 0 || asked == stain.ICMP:
		r = bothWays(icmp)
	default:
		r = choose(bothWays(tcp), bothWays(icmp))
	}
	r.Probes = probes
	r.Need, r.NeedUnderlay = nil, nil // they were questions about one track, and have been asked
	return r
}

// ours: tcp alone cannot tell a fault that may be our own (see Combine).
func ours(r Result) Result {
	if r.remembered() {
		r.Verdict, r.Kind = Unknown, CauseConntrack
		r.Cause = join(r.Cause, remembered+": icmp would tell")
	}
	return r
}

// remembered is how the reason begins for which tcp was not judged where connection tracking may be why it is lost: a switch forgets a
// half-open connection after 30 s (lib/conntrack-tp.c), the kernel after two minutes (nf_conntrack_proto_tcp.c), a guest that listens
// after one (net.ipv4.tcp_synack_retries).
const remembered = "connection tracking may remember an earlier probe by tcp"

// remembered says that what tcp lost may be that.
func (r *Result) remembered() bool {
	return r.MayBeRemembered && (r.Verdict == Faulty || r.Verdict == PolicyDrop || r.Verdict == Silent)
}

// bothWays makes one of there and back of no-touch; in ordinary mode there is but one track.
func bothWays(tracks []Track) Result {
	there := tracks[0].Result
	if !tracks[0].Path.NoTouch {
		return there
	}
	if len(tracks) == 1 {
		if there.Verdict == Healthy {
			there.Verdict, there.Host = Unknown, tracks[0].Path.To.Host
			there.Cause, there.Kind = join(there.Cause, "the way back was not probed"), CauseUnseen
		}
		return there
	}
	back := backward(tracks[1].Result)
	r, other, aside := there, back, "the way back"
	if d := severity(back.Verdict) - severity(there.Verdict); d > 0 || d == 0 && spared(&tracks[0]) {
		r, other, aside = back, there, "the way there"
		r.Src, r.Dst = there.Src, there.Dst
	}
	switch {
	case r.Verdict == Healthy:
		r.Cause, r.Kind = join(there.Cause, back.Cause), cmp.Or(there.Kind, back.Kind)
	case spared(&tracks[0]) || spared(&tracks[1]):
		// Of the other way nothing is known.
	case other.Verdict != Healthy:
		r.Cause = join(r.Cause, fmt.Sprintf("%s is %s", aside, other.Verdict))
	}
	if r.Scheme == 0 {
		r.Scheme = other.Scheme
	}
	r.Samples = append(append([]Aligned(nil), there.Samples...), back.Samples...)
	r.Latencies = append(append([]Latency(nil), there.Latencies...), back.Latencies...)
	r.Duplicates = there.Duplicates + back.Duplicates
	r.RTTNs = 0
	return r
}

// spared says that nothing was sent by a track that could have been probed: the other way cannot be,
// and half a verdict is none.
func spared(t *Track) bool { return t.Result.Probes == 0 && t.Path.Blocked == nil }

// backward shows the result of the way back as what it is to the pair: the other direction.
func backward(r Result) Result {
	if r.Cause != "" {
		r.Cause = "way back: " + r.Cause
	}
	if r.Segment != nil {
		s := *r.Segment
		s.To.Direction = plan.Reply
		if s.From != nil {
			from := *s.From
			from.Direction = plan.Reply
			s.From = &from
		}
		r.Segment = &s
	}
	samples := make([]Aligned, len(r.Samples))
	for i, a := range r.Samples {
		a.Direction = plan.Reply
		samples[i] = a
	}
	r.Samples = samples
	latencies := make([]Latency, len(r.Latencies))
	for i, l := range r.Latencies {
		from := *l.from
		from.Direction = plan.Reply
		l.from = &from
		latencies[i] = l
	}
	r.Latencies = latencies
	return r
}

// severity orders verdicts as the contract does for runs (Run.verdict).
func severity(v Verdict) int {
	switch v {
	case Faulty:
		return 4
	case Silent:
		return 3
	case PolicyDrop:
		return 2
	case Healthy:
		return 0
	}
	return 1
}

// choose picks between what tcp and icmp say of a pair.
func choose(tcp, icmp Result) Result {
	switch {
	case tcp.Verdict == Silent && icmp.Verdict == Healthy:
		icmp.SchemeReason = "tcp is delivered but not answered, icmp echo is"
		return icmp
	case tcp.remembered() && icmp.Verdict == Healthy && tcp.Kind != CauseBetweenHosts:
		first, _, _ := strings.Cut(tcp.Cause, "; ")
		icmp.SchemeReason = remembered + ": " + first
		return icmp
	case tcp.Verdict == Faulty && tcp.Kind == CauseEntrypoint && icmp.Verdict == Healthy:
		icmp.SchemeReason = "tcp was lost by chance, it seems, or for what is remembered of it: icmp echo passes the same tunnel"
		return icmp
	case tcp.remembered() && !icmp.bearsOut(&tcp):
		tcp = ours(tcp)
	case tcp.Verdict == Unknown && (icmp.Verdict == Healthy || icmp.Verdict == Faulty && !icmp.Scant):
		first, _, _ := strings.Cut(tcp.Cause, "; ")
		icmp.SchemeReason = "tcp could not be judged: " + first
		return icmp
	}
	tcp.SchemeReason = reason(tcp.Verdict, tcp.NoTouch)
	if tcp.Verdict != Healthy {
		tcp.Cause = join(tcp.Cause, aside(&tcp, &icmp))
	}
	return tcp
}

// reason is why tcp's verdict is the pair's.
func reason(tcp Verdict, noTouch bool) string {
	switch tcp {
	case Healthy:
		if noTouch {
			return "tcp passes both ways"
		}
		return "tcp is answered"
	case Faulty:
		return "tcp shows the fault"
	case PolicyDrop:
		return "tcp shows the rule"
	case Silent:
		return "tcp is delivered, and icmp echo does no better"
	}
	return "neither tcp nor icmp echo tells"
}

// alone is why tcp's verdict is the pair's though icmp was to be tried where tcp is not healthy.
func alone(tcp Verdict, noTouch bool) string {
	if tcp == Silent || tcp == Unknown {
		return "icmp echo was not tried"
	}
	return reason(tcp, noTouch)
}

// bearsOut says that echoes are lost too, or where tcp is denied, or not answered, they are as well. Who does not answer them tells nothing
// of a loss; nor do those that pass, if one of several ways between two hosts may be broken, which they do not take.
func (r *Result) bearsOut(tcp *Result) bool {
	switch r.Verdict {
	case Faulty:
		return true
	case PolicyDrop, Silent:
		return tcp.Verdict == r.Verdict
	case Unknown:
		return r.diedWith(tcp)
	}
	return false
}

// diedWith says that both were lost in the same segment.
func (r *Result) diedWith(o *Result) bool {
	return r.Segment != nil && o.Segment != nil && r.Segment.String() == o.Segment.String()
}

// aside is what became of icmp, in a few words; none where it adds nothing.
func aside(tcp, icmp *Result) string {
	switch icmp.Verdict {
	case Healthy:
		return "icmp echo passes"
	case Faulty:
		switch {
		case icmp.Segment == nil:
			return "icmp echo is lost"
		case tcp.Verdict == Faulty && icmp.diedWith(tcp):
			return "icmp echo is lost there too"
		}
		return fmt.Sprintf("icmp echo is lost, %s", icmp.Segment)
	case Silent:
		return "icmp echo is not answered"
	case PolicyDrop:
		return "icmp echo is denied by a security rule"
	}
	return ""
}

func join(texts ...string) string {
	var some []string
	for _, t := range texts {
		if t != "" {
			some = append(some, t)
		}
	}
	return strings.Join(some, "; ")
}
