package fleet

import (
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// maxQueued bounds the samples that wait for one run: 1 Mi of them are some 60 MB, or all
	// that 100,000 pairs of ten points have.
	maxQueued = 1 << 20
	// messageCost is what a message takes besides its samples, in samples: an agent that sends
	// them one by one must not take more memory than one that sends columns.
	messageCost = 16
	// maxMatches bounds what a run takes of one Changes; agents send 64.
	maxMatches = 1024
)

// Spec is what the agents are told of a run before it begins.
type Spec struct {
	// Hosts take part. Events name them by their place here.
	Hosts []string
	Key   stain.Key
	// Total bounds the indexes of probes.
	Total uint32
	// Expires is when agents forget the run though nobody told them to.
	Expires time.Duration
}

// Event is a word of one host's agent, or about it.
type Event struct {
	// Host is the index in Spec.Hosts.
	Host int
	// Message is a *dyetracev1.Ready, *Armed, *Audited, *Injected, *Samples, *Finished, *Explanation,
	// *Changes or *UnderlayReport with columns of equal length and indexes below Spec.Total; or a [Gone], or a [Lost].
	Message any
}

// Gone says that the host's session is over, or was not there to begin with. It is the last
// event of the host.
type Gone struct{ Reason string }

// Lost says that samples of the host were dropped because the run did not take them in time.
type Lost struct{ Samples int }

// Assignment is one run, as the agents know it. One goroutine uses it.
type Assignment struct {
	fleet  *Fleet
	number uint64
	spec   Spec
	parts  []*session // by host; nil where there is none

	wake chan struct{} // has room for one
	arms uint64        // Arm.id given so far

	mu     sync.Mutex
	events []Event
	queued int // samples in events, and messageCost for each message
	owed   []owed
	lost   []int // samples dropped, by host
}

// owed is what an agent was asked for and has not answered.
type owed struct {
	ready, finished bool
	probes          int
	explanations    int
	reports         int
	arms            int
	audits          int
	over            bool // Finished has come: no more samples
}

// Begin announces a run to the agents of its hosts. Each answers with a Ready; where there is
// none the event is [Gone]. The caller must Close the assignment.
func (f *Fleet) Begin(spec Spec) *Assignment {
	a := &Assignment{
		fleet: f, spec: spec,
		parts: make([]*session, len(spec.Hosts)),
		wake:  make(chan struct{}, 1),
		owed:  make([]owed, len(spec.Hosts)),
		lost:  make([]int, len(spec.Hosts)),
	}
	f.mu.Lock()
	a.number = f.nextRun
	f.nextRun++
	for i, name := range spec.Hosts {
		if h := f.hosts[name]; h != nil {
			a.parts[i] = h.session
		}
	}
	f.mu.Unlock()

	for i, s := range a.parts {
		a.owed[i].ready = true
		if s == nil {
			a.gone(i, errNone)
			continue
		}
		if err := s.attach(member{a, i}); err != nil {
			a.parts[i] = nil
			a.gone(i, err)
			continue
		}
		s.send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Prepare{Prepare: &dyetracev1.Prepare{
			Run: a.number, Key: spec.Key[:], Total: spec.Total, ExpiresMs: uint32(spec.Expires.Milliseconds()),
		}}})
	}
	return a
}

// Inject asks a host to send probes. It answers with Injected, one or several.
func (a *Assignment) Inject(host int, m *dyetracev1.Inject) {
	a.ask(host, func(o *owed) { o.probes += len(m.GetIndex()) })
	m.Run = a.number
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Inject{Inject: m}})
}

// Withdraw has a host withdraw probes that were not answered.
func (a *Assignment) Withdraw(host int, m *dyetracev1.Withdraw) {
	m.Run = a.number
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Withdraw{Withdraw: m}})
}

// Arm asks a host for what certain probes need before they are sent. It answers with an Armed of
// the id that is returned.
func (a *Assignment) Arm(host int, m *dyetracev1.Arm) (id uint64) {
	a.arms++
	a.ask(host, func(o *owed) { o.arms++ })
	m.Run, m.Id = a.number, a.arms
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Arm{Arm: m}})
	return m.Id
}

// Audit asks a host for an audit of its hooks now. It answers with Audited, after all samples that
// it has by then; an agent that does not know the question does not answer.
// Where it is patient, the agent may take its time for the hooks' counters.
func (a *Assignment) Audit(host int, patient bool) {
	a.ask(host, func(o *owed) { o.audits++ })
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Audit{
		Audit: &dyetracev1.Audit{Run: a.number, Patient: patient},
	}})
}

// Finish ends the run at a host. After all samples that it has it answers with Finished.
func (a *Assignment) Finish(host int) {
	a.ask(host, func(o *owed) { o.finished = true })
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Finish{
		Finish: &dyetracev1.Finish{Run: a.number},
	}})
}

// Explain asks a host what its flows do with a packet. It answers with an Explanation of the
// id that is returned.
func (a *Assignment) Explain(host int, m *dyetracev1.Explain) (id uint64) {
	m.Id = a.question(host)
	a.ask(host, func(o *owed) { o.explanations++ })
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Explain{Explain: m}})
	return m.Id
}

// ProbeUnderlay asks a host for an exchange with another's tunnel address, or what it saw of one.
// It answers with an UnderlayReport of the id that is returned.
func (a *Assignment) ProbeUnderlay(host int, m *dyetracev1.ProbeUnderlay) (id uint64) {
	m.Id = a.question(host)
	a.ask(host, func(o *owed) { o.reports++ })
	a.send(host, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_ProbeUnderlay{ProbeUnderlay: m}})
	return m.Id
}

// question returns the number of a question whose answer is this run's.
func (a *Assignment) question(host int) (id uint64) {
	id = a.fleet.nextID()
	if s := a.parts[host]; s != nil {
		s.explain(id, a.number)
	}
	return id
}

func (a *Assignment) ask(host int, f func(*owed)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.owed[host])
}

func (a *Assignment) send(host int, m *dyetracev1.SessionResponse) {
	if s := a.parts[host]; s != nil {
		s.send(m)
	}
}

// Wake returns a channel that has a value when there may be events.
func (a *Assignment) Wake() <-chan struct{} { return a.wake }

// Events returns what came since the last call, in order for each host; buf is used again.
func (a *Assignment) Events(buf []Event) []Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	events := a.events
	a.events, a.queued = buf[:0], 0
	for i, n := range a.lost {
		if n > 0 {
			events = append(events, Event{i, Lost{n}})
			a.lost[i] = 0
		}
	}
	return events
}

// Close forgets the run. Agents that were not told to Finish forget it when it expires.
func (a *Assignment) Close() {
	for _, s := range a.parts {
		if s != nil {
			s.forget(a.number)
		}
	}
}

// answer takes in a word that is not samples, if it was asked for.
func (a *Assignment) answer(host int, m any) (asked bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := &a.owed[host]
	switch m := m.(type) {
	case *dyetracev1.Ready:
		asked, o.ready = o.ready, false
	case *dyetracev1.Finished:
		asked, o.finished = o.finished, false
		o.over = o.over || asked
	case *dyetracev1.Explanation:
		if asked = o.explanations > 0; asked {
			o.explanations--
		}
	case *dyetracev1.UnderlayReport:
		if asked = o.reports > 0; asked {
			o.reports--
		}
	case *dyetracev1.Armed:
		if asked = o.arms > 0; asked {
			o.arms--
		}
	case *dyetracev1.Audited:
		if asked = o.audits > 0; asked {
			o.audits--
		}
	case *dyetracev1.Injected:
		n := len(m.GetIndex()) + len(m.GetFailures())
		if asked = n > 0 && n <= o.probes && checkInjected(m, a.spec.Total); asked {
			o.probes -= n
		}
	}
	if asked {
		a.put(Event{host, m})
	}
	return asked
}

// samples takes in samples that were checked, and reports whether there was room.
func (a *Assignment) samples(host int, m *dyetracev1.Samples) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := len(m.GetIndex())
	switch {
	case a.owed[host].over: // the agent has attested that there are none
		return false
	case a.queued+n+messageCost > maxQueued:
		a.lost[host] += n
		a.ring()
		return false
	}
	a.queued += n + messageCost
	a.put(Event{host, m})
	return true
}

// changed passes on that flows were changed, unless much waits to be read.
func (a *Assignment) changed(host int, m *dyetracev1.Changes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := messageCost + len(m.GetMatches()); a.queued+n <= maxQueued/2 && len(m.GetMatches()) <= maxMatches {
		a.queued += n
		a.put(Event{host, m})
	}
}

func (a *Assignment) gone(host int, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.put(Event{host, Gone{why.Error()}})
}

func (a *Assignment) put(e Event) {
	a.events = append(a.events, e)
	a.ring()
}

func (a *Assignment) ring() {
	select {
	case a.wake <- struct{}{}:
	default: // it will look anyway
	}
}
