package pace

import (
	"slices"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// Pace bounds how many probes an instance takes part in, over all runs: as the source, whose
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
type Pace struct {
	rate  float64 // tokens a second
	burst float64

	mu      sync.Mutex
	buckets map[string]*Bucket
	wires   map[[2]string]*wire
	hosts   map[string]*window
}

// MaxFlying bounds the probes under way from one host. Four switches, their guests, agents and the
// controller on two cores get 1,700 to 3,400 probes a second through (make bench), so 64 from each
// of four hosts are through in 75 to 150 ms, before they settle; thousands at once overflowed the
// queues of dye ports (measured: ENOBUFS, and losses of ours).
const MaxFlying = 64

// PatrolShare of an instance's burst is left to examinations: a patrol sends no probe that would take of it.
const PatrolShare = 0.5

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

// Party is who has joined: a run, the patrol of one, or an examination. It is told by its address, so it must have
// a size.
type Party struct{ _ byte }

// claim is a party's that waits for a wire, and when it last said so.
type claim struct {
	by *Party
	at time.Time
}

// claimFor is how long a claim stands of which nothing is heard any more. Who waits looks every tick; on a busy
// machine that may be late.
const claimFor = 250 * time.Millisecond

// take has a party have the wire if it is free and nobody waits who came before. Else it is one who waits: one
// that looks often, as a patrol, would have it for ever otherwise, and an examination of the opposite pair never.
func (w *wire) take(by *Party, now time.Time) bool {
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

// Bucket is what an instance may take part in yet. It is told by its address.
type Bucket struct {
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

// New has instances take part in rate probes a second, and in so many at once when they have taken part in none for a while.
func New(rate, burst float64) *Pace {
	return &Pace{rate: rate, burst: burst, buckets: map[string]*Bucket{}, wires: map[[2]string]*wire{}, hosts: map[string]*window{}}
}

// Lane is the two buckets of a pair, its wire, and its source's host. wire is nil for what needs none.
type Lane struct {
	Src, Dst *Bucket
	By       *Party
	wire     *wire
	host     *window
}

// Beside is the lane of what needs no wire.
func (l Lane) Beside() Lane {
	l.wire = nil
	return l
}

// Rate is how many probes a second an instance takes part in.
func (p *Pace) Rate() float64 { return p.rate }

// Burst is how many an instance takes part in at once, if it has taken part in none for a while.
func (p *Pace) Burst() float64 { return p.burst }

// Held is how many instances, connections and hosts are remembered: of pairs that have joined, of what may be half-open still, and of what was
// spent a moment ago.
func (p *Pace) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buckets) + len(p.wires) + len(p.hosts)
}

// Join returns the lanes of pairs, which must [Pace.Leave].
func (p *Pace) Join(pairs []plan.Pair, now time.Time) []Lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	lanes, by := make([]Lane, len(pairs)), &Party{}
	for i := range pairs {
		src, dst := pairs[i].Src.Ref(), pairs[i].Dst.Ref()
		lanes[i] = Lane{p.bucket(src, now), p.bucket(dst, now), by, p.wire(min(src, dst), max(src, dst)), p.window(pairs[i].Src.Host)}
	}
	return lanes
}

func (p *Pace) wire(a, b string) *wire {
	w := p.wires[[2]string{a, b}]
	if w == nil {
		w = &wire{}
		p.wires[[2]string{a, b}] = w
	}
	w.users++
	return w
}

func (p *Pace) window(host string) *window {
	w := p.hosts[host]
	if w == nil {
		w = &window{}
		p.hosts[host] = w
	}
	w.users++
	return w
}

// Free says that the probe which Pick let go by a lane is over: answered, or withdrawn.
func (p *Pace) Free(l Lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.wire != nil {
		l.wire.busy = false
	}
	l.host.flying--
}

// Keep has a lane's wire stay busy until then, though whoever holds it frees it before.
func (p *Pace) Keep(l Lane, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(l.wire.until) {
		l.wire.until = until
	}
}

func (p *Pace) bucket(ref string, now time.Time) *Bucket {
	b := p.buckets[ref]
	if b == nil {
		b = &Bucket{tokens: p.burst, at: now}
		p.buckets[ref] = b
	}
	b.users++
	return b
}

// Leave gives lanes back. Buckets that nobody uses and that are full are forgotten, and wires that
// are free: a new one would be the same.
func (p *Pace) Leave(lanes []Lane, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range lanes {
		l.Src.users--
		l.Dst.users--
		l.wire.users--
		l.host.users--
		l.wire.waiting = slices.DeleteFunc(l.wire.waiting, func(c claim) bool { return c.by == l.By })
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

func (p *Pace) fill(b *Bucket, now time.Time) {
	if now.After(b.at) {
		more := now.Sub(b.at).Seconds() * p.rate
		b.tokens, b.spare = min(p.burst, b.tokens+more), min(1, b.spare+more/2)
		b.at = now
	}
}

// Pick takes from queue the probes that may go now, in order, and returns them and the rest.
// laneOf returns the lane of a probe, leaveOf how many tokens it leaves to others, who have every other one at the least if they want
// them; less than none is what its instances may owe; nil is that all leave none. rest reuses queue. Whoever picks owes a Free.
func (p *Pace) Pick(queue []uint32, laneOf func(uint32) Lane, leaveOf func(uint32) float64, now time.Time) (go_, rest []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest = queue[:0]
	for _, number := range queue {
		l := laneOf(number)
		p.fill(l.Src, now)
		p.fill(l.Dst, now)
		leave := 0.0
		if leaveOf != nil {
			leave = leaveOf(number)
		}
		if l.host.flying >= MaxFlying || !l.Src.grants(leave, p.burst) || !l.Dst.grants(leave, p.burst) || l.wire != nil && !l.wire.take(l.By, now) {
			rest = append(rest, number)
			continue
		}
		l.Src.take(leave, now)
		l.Dst.take(leave, now)
		l.host.flying++
		go_ = append(go_, number)
	}
	return go_, rest
}

// grants says that one may have a token who leaves so many; of those who leave some every other one, but for where there is half of the
// burst.
func (b *Bucket) grants(leave, burst float64) bool {
	return b.tokens >= 1+leave && (leave <= 0 || b.spare >= 1 || b.tokens >= PatrolShare*burst)
}

func (b *Bucket) take(leave float64, now time.Time) {
	b.tokens--
	if leave > 0 {
		b.spare, b.spared = max(0, b.spare-1), now
	}
}

// Means are what the instances of a pair have.
type Means struct {
	Rich, Nearly bool // so many tokens, or but one more than so few, where others leave them; or but for one
	Some, Almost bool // so few, whatever others do; or but for one
	Full         bool // whatever they have, as many probes are under way from the source's host as may be
}

// Alike is that so many tokens are rich, of all instances.
func Alike(tokens float64) func(int) (src, dst float64) {
	return func(int) (src, dst float64) { return tokens, tokens }
}

// Means says of each lane what its instances have, if so many tokens are rich, at the least, of its source and destination, and so few are some.
func (p *Pace) Means(lanes []Lane, rich func(lane int) (src, dst float64), few float64, now time.Time) []Means {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Means, len(lanes))
	for i, l := range lanes {
		src, dst := rich(i)
		a, b := l.Src.means(p, src, few, now), l.Dst.means(p, dst, few, now)
		all[i] = Means{a.Rich && b.Rich, a.Nearly && b.Nearly, a.Some && b.Some, a.Almost && b.Almost, l.host.flying >= MaxFlying}
	}
	return all
}

// means is what one instance has.
func (b *Bucket) means(p *Pace, rich, few float64, now time.Time) Means {
	p.fill(b, now)
	if now.Sub(b.spared) < sparing {
		rich = min(rich, few+1) // at few it is who leaves them that has his turn, every other time
	}
	some := b.tokens >= few
	return Means{Rich: some && b.tokens >= rich, Nearly: b.tokens >= rich-1, Some: some, Almost: b.tokens >= few-1}
}

// Needs returns how long pairs take at the least, so many probes each.
func (p *Pace) Needs(pairs []plan.Pair, each int) time.Duration {
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
