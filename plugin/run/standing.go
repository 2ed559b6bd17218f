package run

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// standing is how a pair stands.
type standing struct {
	base  *dyetracev1.PairResult // of the last examination; nil before the first
	shown *dyetracev1.PairResult // what everybody was told
	steps []step
	track int    // of the patrol, -1 where there is none
	rtts  recent // how long its probes took, the last of them
	// since is when the first probe was lost, or arrived, that does not fit base; sound is since when
	// it has been healthy.
	since   time.Time
	sound   time.Time
	suspect bool
	met     *prior // what made it suspect, if a probe was lost
	exam    uint64 // under way, 0 is none
	flying  bool
	hurried bool      // a change names it, and it was not probed since
	pressed bool      // the probe under way goes for that
	again   time.Time // to be examined then
	// found is when it was examined last, and renewed that a change has named it since that began.
	found   time.Time
	lasted  time.Duration // that examination
	renewed bool
	// outdated is when an examination of it was given up last, for another.
	outdated time.Time
	unseen   int       // examinations in a row that could not tell
	echoes   time.Time // since when it is healthy by icmp only, where schemes are chosen; else zero
	row      int       // probes in a row that were missed, of one that lost a share
	// pending are probes that were lost while it was suspect.
	pending []meeting
}

// suspect has a pair be examined as soon as may be.
func (c *continuous) suspect(i int, since time.Time) {
	p := &c.pairs[i]
	if !p.suspect {
		p.suspect, p.since = true, since
	}
}

// tell lets everybody know how a pair stands, if that is news.
func (c *continuous) tell(i int, now time.Time) {
	p := &c.pairs[i]
	if p.base == nil {
		return
	}
	r := p.base
	if r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY {
		if worst, from, to := c.blamed(i); worst != nil {
			r = worst.verdict(p.base, c.test, from, to)
		}
	}
	if p.shown != nil && named(p.shown) == named(r) {
		return
	}
	r = proto.CloneOf(r)
	since := now
	wasLoss := p.shown != nil && verdict.Partial(p.shown) && r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY
	if p.since.Before(now) && !p.since.IsZero() && !wasLoss && !verdict.Partial(r) {
		since = p.since
	}
	r.Since = timestamppb.New(since)
	if p.shown != nil {
		r.Before, r.Changes = p.shown.GetVerdict(), p.shown.GetChanges()+1
		c.r.metrics.transitions.WithLabelValues(verdictLabel(r.GetVerdict())).Inc()
		if r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY && since != now {
			c.r.metrics.named.Observe(now.Sub(since).Seconds())
		}
	}
	p.shown = r
	c.out.seq = append(c.out.seq, c.job.seq[i])
	c.out.results = append(c.out.results, r)
}

// blamed is the pool that makes a pair faulty, and where on its way that is; nil for none. It is the underlay
// that loses, if that is known, and else the pool that most pairs share.
func (c *continuous) blamed(i int) (most *pool, from, to *plan.Expected) {
	points := func(s *step) (from, to *plan.Expected) {
		path := c.paths[i]
		if path == nil || s.to >= len(path.Points) {
			return nil, nil
		}
		return &path.Points[s.from], &path.Points[s.to]
	}
	steps := c.pairs[i].steps
	for k := range steps {
		s := &steps[k]
		if s.net != nil && s.net.blaming() {
			from, to = points(s)
			return s.net, from, to
		}
		for _, p := range s.pools {
			if p.blaming() && (most == nil || len(p.pairs) > len(most.pairs)) {
				most = p
				from, to = points(s)
			}
		}
	}
	if own := c.pools.own(i); own.blaming() && (most == nil || len(own.pairs) > len(most.pairs)) {
		most = own
		from, to = own.ends()
	}
	return most, from, to
}

// naming is what must change of a verdict for it to be news: figures and notes are not.
type naming struct {
	verdict             dyetracev1.Verdict
	kind                dyetracev1.CauseKind
	host, segment, flow string
}

func named(r *dyetracev1.PairResult) naming {
	if r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY {
		return naming{verdict: r.GetVerdict()}
	}
	n := naming{verdict: r.GetVerdict(), kind: r.GetCauseKind(), host: r.GetHost(), segment: r.GetSegment().String()}
	if f := r.GetFlow(); f != nil {
		n.flow = f.GetBridge() + " " + f.GetMatch() + " " + f.GetActions()
	}
	return n
}

// samePoints says that two paths of a pair pass the same points, from the same port to the same port.
func samePoints(a, b *plan.Path) bool {
	return a != nil && b != nil && a.From.Host == b.From.Host && a.To.Host == b.To.Host && a.From.OFPort == b.From.OFPort && a.To.OFPort == b.To.OFPort &&
		slices.Equal(a.Points, b.Points)
}

// samePath says that two paths of a pair are probed and judged in the same way.
func samePath(a, b *plan.Path) bool {
	if a == nil || b == nil {
		return a == b
	}
	same := a.From.Absent == b.From.Absent && a.To.Absent == b.To.Absent && a.From.Blind == b.From.Blind && a.To.Blind == b.To.Blind &&
		a.From.LinkDown == b.From.LinkDown && a.To.LinkDown == b.To.LinkDown && a.Inject == b.Inject &&
		a.From.Confirmed == b.From.Confirmed && a.To.Confirmed == b.To.Confirmed &&
		a.SrcMAC == b.SrcMAC && a.DstMAC == b.DstMAC && a.Src == b.Src && a.Dst == b.Dst && (a.Blocked == nil) == (b.Blocked == nil)
	return same && samePoints(a, b)
}
