package run

import (
	"slices"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// pace bounds how many probes an instance takes part in, over all runs: as the source, whose
// kernel gets the answer, and as the destination, whose kernel gets the probe. An instance has a
// bucket of burst tokens that fills at a rate.
//
// It also sees to it that between two instances there is one probe by tcp under way at a time, in
// either direction and over all runs, which take turns. A probe from a to b and one from b to a are the same
// connection (RFC 9293, section 3.3.1: both ports are the stain's), and connection tracking takes
// the answer to the one for a forged answer to the other (measured: +inv, dropped).
//
// And it bounds the probes under way from one host, over all runs, so that a run of any size is
// clocked by what the switches get through.
type pace struct {
	rate  float64 // tokens a second
	burst float64

	mu      sync.Mutex
	buckets map[string]*bucket
	wires   map[[2]string]*wire
	hosts   map[string]*window
}

// maxFlying bounds the probes under way from one host. Four switches, their guests, agents and the
// controller on two cores get 1,700 to 3,400 probes a second through (make bench), so 64 from each
// of four hosts are through in 75 to 150 ms, before they settle; thousands at once overflowed the
// queues of dye ports (measured: ENOBUFS, and losses of ours).
const maxFlying = 64

// window counts the probes under way from one host.
type window struct {
	flying int
	users  int // pairs of runs under way
}

// wire is the one connection that two instances can have by stained packets.
type wire struct {
	busy    bool
	until   time.Time // when it is free at the earliest, if nobody will say so
	users   int       // pairs of runs under way
	waiting []claim   // who wanted it while it was not, the first first
}

// party is who has joined: a run, the patrol of one, or an examination. It is told by its address, so it must have
// a size.
type party struct{ _ byte }

// claim is a party's that waits for a wire, and when it last said so.
type claim struct {
	by *party
	at time.Time
}

// claimFor is how long a claim stands of which nothing is heard any more. Who waits looks every tick; on a busy
// machine that may be late.
const claimFor = 250 * time.Millisecond

// take has a party have the wire if it is free and nobody waits who came before. Else it is one who waits: one
// that looks often, as a patrol, would have it for ever otherwise, and an examination of the opposite pair never.
func (w *wire) take(by *party, now time.Time) bool {
	w.waiting = slices.DeleteFunc(w.waiting, func(c claim) bool { return c.by != by && now.Sub(c.at) > claimFor })
	mine := slices.IndexFunc(w.waiting, func(c claim) bool { return c.by == by })
	switch free := !w.busy && !now.Before(w.until); {
	case free && len(w.waiting) == 0:
		w.busy = true
	case free && mine == 0:
		w.busy, w.waiting = true, slices.Delete(w.waiting, 0, 1)
	case mine < 0:
		w.waiting = append(w.waiting, claim{by, now})
		return false
	default:
		w.waiting[mine].at = now
		return false
	}
	return true
}

type bucket struct {
	tokens float64
	at     time.Time // when tokens was right
	users  int       // pairs of runs under way
	// spare is what those who leave tokens to others may still take of less than half of a burst, and spared when one last did.
	spare  float64
	spared time.Time
}

// sparing is how long after the last probe that leaves tokens to others there may be another: who asks for tokens is content with fewer
// meanwhile, of which it has every other one at the least.
const sparing = time.Second

func newPace(rate, burst float64) *pace {
	return &pace{rate: rate, burst: burst, buckets: map[string]*bucket{}, wires: map[[2]string]*wire{}, hosts: map[string]*window{}}
}

// lane is the two buckets of a pair, its wire, and its source's host. wire is nil for what needs none.
type lane struct {
	src, dst *bucket
	wire     *wire
	host     *window
	by       *party
}

// join returns the lanes of pairs, which must leave.
func (p *pace) join(pairs []plan.Pair, now time.Time) []lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	lanes, by := make([]lane, len(pairs)), &party{}
	for i := range pairs {
		src, dst := pairs[i].Src.Ref(), pairs[i].Dst.Ref()
		lanes[i] = lane{p.bucket(src, now), p.bucket(dst, now), p.wire(min(src, dst), max(src, dst)), p.window(pairs[i].Src.Host), by}
	}
	return lanes
}

func (p *pace) wire(a, b string) *wire {
	w := p.wires[[2]string{a, b}]
	if w == nil {
		w = &wire{}
		p.wires[[2]string{a, b}] = w
	}
	w.users++
	return w
}

func (p *pace) window(host string) *window {
	w := p.hosts[host]
	if w == nil {
		w = &window{}
		p.hosts[host] = w
	}
	w.users++
	return w
}

// free says that the probe which pick let go by a lane is over: answered, or withdrawn.
func (p *pace) free(l lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.wire != nil {
		l.wire.busy = false
	}
	l.host.flying--
}

// keep has a lane's wire stay busy until then, though whoever holds it frees it before.
func (p *pace) keep(l lane, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(l.wire.until) {
		l.wire.until = until
	}
}

func (p *pace) bucket(ref string, now time.Time) *bucket {
	b := p.buckets[ref]
	if b == nil {
		b = &bucket{tokens: p.burst, at: now}
		p.buckets[ref] = b
	}
	b.users++
	return b
}

// leave gives lanes back. Buckets that nobody uses and that are full are forgotten, and wires that
// are free: a new one would be the same.
func (p *pace) leave(lanes []lane, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range lanes {
		l.src.users--
		l.dst.users--
		l.wire.users--
		l.host.users--
		l.wire.waiting = slices.DeleteFunc(l.wire.waiting, func(c claim) bool { return c.by == l.by })
	}
	for name, h := range p.hosts {
		if h.users == 0 {
			delete(p.hosts, name)
		}
	}
	for key, w := range p.wires {
		if w.users == 0 && !now.Before(w.until) {
			delete(p.wires, key)
		}
	}
	for ref, b := range p.buckets {
		if p.fill(b, now); b.users == 0 && b.tokens >= p.burst {
			delete(p.buckets, ref)
		}
	}
}

func (p *pace) fill(b *bucket, now time.Time) {
	if now.After(b.at) {
		more := now.Sub(b.at).Seconds() * p.rate
		b.tokens, b.spare = min(p.burst, b.tokens+more), min(1, b.spare+more/2)
		b.at = now
	}
}

// pick takes from queue the probes that may go now, in order, and returns them and the rest.
// laneOf returns the lane of a probe, leaveOf how many tokens it leaves to others, who have every other one at the least if they want
// them; less than none is what its instances may owe; nil is that all leave none. rest reuses queue. Whoever picks owes a free.
func (p *pace) pick(queue []uint32, laneOf func(uint32) lane, leaveOf func(uint32) float64, now time.Time) (go_, rest []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest = queue[:0]
	for _, number := range queue {
		l := laneOf(number)
		p.fill(l.src, now)
		p.fill(l.dst, now)
		leave := 0.0
		if leaveOf != nil {
			leave = leaveOf(number)
		}
		if l.host.flying >= maxFlying || !l.src.grants(leave, p.burst) || !l.dst.grants(leave, p.burst) || l.wire != nil && !l.wire.take(l.by, now) {
			rest = append(rest, number)
			continue
		}
		l.src.take(leave, now)
		l.dst.take(leave, now)
		l.host.flying++
		go_ = append(go_, number)
	}
	return go_, rest
}

// grants says that one may have a token who leaves so many; of those who leave some every other one, but for where there is half of the
// burst.
func (b *bucket) grants(leave, burst float64) bool {
	return b.tokens >= 1+leave && (leave <= 0 || b.spare >= 1 || b.tokens >= patrolShare*burst)
}

func (b *bucket) take(leave float64, now time.Time) {
	b.tokens--
	if leave > 0 {
		b.spare, b.spared = max(0, b.spare-1), now
	}
}

// means are what the instances of a pair have.
type means struct {
	rich, nearly bool // so many tokens, or but one more than so few, where others leave them; or but for one
	some, almost bool // so few, whatever others do; or but for one
}

// means says of each lane what its instances have, if so many tokens are rich, at the least, and so few are some.
func (p *pace) means(lanes []lane, tokens, few float64, now time.Time) []means {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]means, len(lanes))
	for i, l := range lanes {
		p.fill(l.src, now)
		p.fill(l.dst, now)
		m := means{true, true, true, true}
		for _, b := range []*bucket{l.src, l.dst} {
			need := tokens
			if now.Sub(b.spared) < sparing {
				need = min(tokens, few+1) // at few it is who leaves them that has his turn, every other time
			}
			m.rich, m.nearly = m.rich && b.tokens >= need, m.nearly && b.tokens >= need-1
			m.some, m.almost = m.some && b.tokens >= few, m.almost && b.tokens >= few-1
		}
		m.rich = m.rich && m.some
		all[i] = m
	}
	return all
}

// needs returns how long pairs take at the least, so many probes each.
func (p *pace) needs(pairs []plan.Pair, each int) time.Duration {
	probes := map[string]int{}
	most := 0
	for i := range pairs {
		for _, ref := range []string{pairs[i].Src.Ref(), pairs[i].Dst.Ref()} {
			probes[ref] += each
			most = max(most, probes[ref])
		}
	}
	return time.Duration(max(0, float64(most)-p.burst) / p.rate * float64(time.Second))
}
