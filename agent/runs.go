package agent

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// Bounds on what a controller can make an agent keep.
const (
	// A run costs some 200 bytes here, and every copy is tried against all of
	// them (some 30 ns each).
	maxRuns = 256
	// A batch of samples is sent when it holds this many, or when the ring has
	// no more to read. 512 samples are some 20 kB of protobuf.
	batchSize = 512
)

// activeRun is a run that the controller prepared here.
type activeRun struct {
	id      uint64
	key     stain.Key
	tokens  *stain.Tokens
	expires time.Time
	// answers are the ports that it wants armed, by how many requests each; guarded
	// by the table.
	answers map[portKey]int
}

// runTable knows the runs under way. Readers of samples take a snapshot of it
// without a lock held; it changes a few times per run.
type runTable struct {
	mu   sync.RWMutex
	runs []*activeRun // replaced, never changed in place

	arming sync.Mutex // guards the answers of all of them
}

// add begins a run; a run of the same number is replaced.
func (t *runTable) add(p *dyetracev1.Prepare, now time.Time) error {
	if len(p.Key) != stain.KeySize {
		return fmt.Errorf("prepare run %d: key has %d bytes (want %d)", p.Run, len(p.Key), stain.KeySize)
	}
	if p.Total == 0 {
		return fmt.Errorf("prepare run %d: total is 0 (want the number of probes)", p.Run)
	}
	r := &activeRun{
		id:      p.Run,
		key:     stain.Key(p.Key),
		expires: now.Add(time.Duration(p.ExpiresMs) * time.Millisecond),
		answers: make(map[portKey]int),
	}
	r.tokens = stain.NewTokens(r.key, p.Total)

	t.mu.Lock()
	defer t.mu.Unlock()
	next := make([]*activeRun, 0, len(t.runs)+1)
	for _, old := range t.runs {
		if old.id != p.Run && old.expires.After(now) {
			next = append(next, old)
		}
	}
	if len(next) >= maxRuns {
		return fmt.Errorf("prepare run %d: %d runs are under way on this host, no more are taken", p.Run, maxRuns)
	}
	t.runs = append(next, r)
	return nil
}

// get returns the run, or nil.
func (t *runTable) get(id uint64) *activeRun {
	for _, r := range t.snapshot() {
		if r.id == id {
			return r
		}
	}
	return nil
}

// remove ends a run, and tells whether it had armed ports; one that is not there is
// fine.
func (t *runTable) remove(id uint64) (armed bool) {
	t.arming.Lock()
	defer t.arming.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	var next []*activeRun
	for _, r := range t.runs {
		if r.id == id {
			armed = len(r.answers) > 0
			continue
		}
		next = append(next, r)
	}
	t.runs = next
	return armed
}

// clear forgets all runs: their controller is gone.
func (t *runTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.runs = nil
}

func (t *runTable) snapshot() []*activeRun {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.runs
}

// echoes stands among a bridge's armed ports for the replies to echoes, whatever port they
// come by. No port has an empty name.
const echoes = ""

// arm has a run want ports armed until it ends. None is, if a bridge would have more
// than maxAnswers of them.
func (t *runTable) arm(r *activeRun, ports []portKey, now time.Time) error {
	t.arming.Lock()
	defer t.arming.Unlock()
	for _, p := range ports {
		r.answers[p]++
	}
	for _, p := range ports {
		names := slices.DeleteFunc(t.armed(p.bridge, now), func(name string) bool { return name == echoes })
		if n := len(names); n > maxAnswers {
			t.drop(r, ports)
			return fmt.Errorf("answers: %d ports of bridge %s would be armed (want at most %d)", n, p.bridge, maxAnswers)
		}
	}
	return nil
}

// disarm takes one arm back.
func (t *runTable) disarm(r *activeRun, ports []portKey) {
	t.arming.Lock()
	defer t.arming.Unlock()
	t.drop(r, ports)
}

func (t *runTable) drop(r *activeRun, ports []portKey) {
	for _, p := range ports {
		if r.answers[p]--; r.answers[p] <= 0 {
			delete(r.answers, p)
		}
	}
}

// answers returns the ports of a bridge that some run wants armed, sorted, echoes among them.
func (t *runTable) answers(bridge string, now time.Time) []string {
	t.arming.Lock()
	defer t.arming.Unlock()
	return t.armed(bridge, now)
}

func (t *runTable) armed(bridge string, now time.Time) []string {
	var names []string
	for _, r := range t.snapshot() {
		if !r.expires.After(now) {
			continue
		}
		for p := range r.answers {
			if p.bridge == bridge {
				names = append(names, p.port)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// batch gathers one bridge's samples of one run until they are sent.
type batch struct {
	run uint64
	msg *dyetracev1.Samples
}

func newBatch(run uint64, bridge string) *batch {
	return &batch{run: run, msg: &dyetracev1.Samples{Run: run, Bridges: []string{bridge}}}
}

func (b *batch) add(r *activeRun, index uint32, c *stain.Copy, atNs int64) {
	m := b.msg
	m.Index = append(m.Index, index)
	m.Bridge = append(m.Bridge, 0)
	m.Kind = append(m.Kind, dyetracev1.PointKind(c.Kind))
	m.AtNs = append(m.AtNs, uint64(max(atNs, 0)))
	m.AddrTag = append(m.AddrTag, stain.AddrTag(r.key, c.Src, c.Dst))
	m.Ttl = append(m.Ttl, uint32(c.TTL))
	m.InPort = append(m.InPort, uint32(c.InPort))
	m.TunSrc = append(m.TunSrc, binary.BigEndian.Uint32(c.TunSrc[:]))
	m.TunId = append(m.TunId, c.TunID)
	m.Reply = append(m.Reply, c.Reply)
	m.NoReply = append(m.NoReply, c.NoReply)
	m.Scheme = append(m.Scheme, dyetracev1.Scheme(c.Scheme))
	m.TcpFlags = append(m.TcpFlags, uint32(c.Flags))
}
