package fleet

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const (
	// streamRate is how many datagrams a second a stream has while nothing is lost, suspectRate at the most for a
	// while after one was: at 1 % of loss the first is lost within half a second on average, and what it takes
	// to be sure is there 0.7 s later (computed; package sequential, plugin/run).
	// Agents that tell no bound send no more than olderRate.
	streamRate, suspectRate, olderRate = 200, 2000, 1000
	// answered bounds what streams may have one host answer a second, if all that come to it were
	// suspect at once: less than agents do (package dataplane/underlay).
	answered = 8000
	// maxColumns bounds the source ports that one of an agent's reports may have.
	maxColumns = 128
	// maxSilence bounds since when a stream is said not to be answered.
	maxSilence = time.Hour
)

// StreamTarget is a stream of datagrams that a run wants from one host to another's tunnel address.
type StreamTarget struct {
	From, To string
	// Src is the zero Addr where the sending host is to choose.
	Src, Dst netip.Addr
	// Port where the other host answers.
	Port uint16
	// ToS of what a tunnel carries: datagrams have what the tunnel makes of it.
	ToS uint8
	// Size is bytes of IP packet.
	Size int
	// Tunnel is the sending host's tunnel port that this is; empty where it is to choose.
	Tunnel string
}

// StreamCount is what became of a stream's datagrams since the last one.
type StreamCount struct {
	// Target is which of those of Set.
	Target int
	// Src is the address that was used; the zero Addr with an error.
	Src netip.Addr
	// Error is why there is no stream.
	Error string
	Ports []PortCount
	// Silent is how many datagrams in a row, the last ones, are not answered, where answers used to come and are
	// overdue; 0 while they are not. SilentFor is how long ago the first of them was sent.
	Silent    int
	SilentFor time.Duration
}

// PortCount is of one source port.
type PortCount struct {
	Port                         uint16
	Passed, Back, There, Unclear int
}

// Streaming is the streams that one run wants. Its methods may be called from many goroutines.
type Streaming struct {
	fleet   *Fleet
	wake    chan struct{} // has room for one
	targets []StreamTarget
	counts  []StreamCount
}

// maxCounts bounds what a run has not taken; what comes then is dropped: nothing is known of it.
const maxCounts = 1 << 16

// streams are those of all runs: where two want the same, there is one.
type streams struct {
	mu     sync.Mutex
	budget int // of a host, datagrams a second
	set    uint64
	wanted []*Streaming
	sent   map[string]*hostStreams
}

// hostStreams is what a host's agent was asked for.
type hostStreams struct {
	targets []StreamTarget
	message *dyetracev1.StreamUnderlay
	most    float64 // that its agent sends of a stream, as was planned by
}

// Stream begins to have hosts send streams. budget is how many datagrams a second each of them may send in
// all, for all runs. The caller must Close what is returned.
func (f *Fleet) Stream(budget int) *Streaming {
	s := &Streaming{fleet: f, wake: make(chan struct{}, 1)}
	f.streams.mu.Lock()
	defer f.streams.mu.Unlock()
	f.streams.budget = budget
	f.streams.wanted = append(f.streams.wanted, s)
	return s
}

// Set has these streams be sent, and no others for this run. What was counted before is forgotten.
func (s *Streaming) Set(targets []StreamTarget) {
	st := &s.fleet.streams
	st.mu.Lock()
	defer st.mu.Unlock()
	s.targets, s.counts = slices.Clone(targets), nil
	st.plan(s.fleet)
}

// Close ends the run's streams.
func (s *Streaming) Close() {
	st := &s.fleet.streams
	st.mu.Lock()
	defer st.mu.Unlock()
	st.wanted = slices.DeleteFunc(st.wanted, func(o *Streaming) bool { return o == s })
	st.plan(s.fleet)
}

// Wake returns a channel that has a value when there may be counts.
func (s *Streaming) Wake() <-chan struct{} { return s.wake }

// Take returns what was counted since the last call.
func (s *Streaming) Take() []StreamCount {
	st := &s.fleet.streams
	st.mu.Lock()
	defer st.mu.Unlock()
	counts := s.counts
	s.counts = nil
	return counts
}

// plan says what each host is to send, and tells those for which that has changed.
func (st *streams) plan(f *Fleet) {
	by := map[string][]StreamTarget{}
	asks, answers, known := map[string]int{}, map[string]int{}, map[StreamTarget]bool{}
	for _, s := range st.wanted {
		for _, t := range s.targets {
			if known[t] {
				continue
			}
			known[t] = true
			by[t.From] = append(by[t.From], t)
			asks[t.From]++
			answers[t.To]++
		}
	}
	if st.sent == nil {
		st.sent = map[string]*hostStreams{}
	}
	for host, old := range st.sent {
		if len(by[host]) == 0 && len(old.targets) > 0 {
			by[host] = nil // is to be told
		}
	}
	for host, targets := range by {
		m := &dyetracev1.StreamUnderlay{}
		own, planned, old := 0.0, 0.0, st.sent[host]
		if old != nil {
			planned = old.most
		}
		most := f.streamsOf(host, planned)
		for _, t := range targets {
			rate, suspect := st.rates(asks[t.From], answers[t.To], most)
			own += rate
			dst := t.Dst.As16()
			p := &dyetracev1.UnderlayTarget{DstIp: dst[:], Port: uint32(t.Port), Tos: uint32(t.ToS), Size: uint32(t.Size), Tunnel: t.Tunnel,
				RateMilli: uint32(math.Ceil(1000 * rate)), SuspectRateMilli: uint32(math.Ceil(1000 * suspect))}
			if t.Src.IsValid() {
				src := t.Src.As16()
				p.SrcIp = src[:]
			}
			m.Targets = append(m.Targets, p)
		}
		m.Extra = uint32(max(0, float64(st.budget)-own))
		if old != nil {
			old.most = most
			m.Set = old.message.Set
			if proto.Equal(m, old.message) {
				continue
			}
		}
		st.set++
		m.Set = st.set
		st.sent[host] = &hostStreams{targets, m, most}
		f.tell(host, m)
	}
}

// rates are those of a stream from a host that sends so many to one that answers so many: half of what a
// host may send at the least is for suspicion.
func (st *streams) rates(asks, answers int, most float64) (rate, suspect float64) {
	half := float64(st.budget) / 2
	rate = min(streamRate, half/float64(asks), half/float64(answers))
	return rate, max(rate, min(suspectRate, most, answered/float64(answers)))
}

// resend has an agent that is new know what it is to send.
func (st *streams) resend(f *Fleet, host string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if h := st.sent[host]; h != nil && len(h.targets) > 0 {
		f.tell(host, h.message)
	}
}

// bounded plans anew where a host's agent tells another bound than was planned by.
func (st *streams) bounded(f *Fleet, host string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if h := st.sent[host]; h != nil && len(h.targets) > 0 && h.most != f.streamsOf(host, h.most) {
		st.plan(f)
	}
}

// streamsOf is how many questions a second a host's agent sends of a stream at the most; what was planned by, where it is away or has
// not told yet.
func (f *Fleet) streamsOf(host string, planned float64) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	switch {
	case h != nil && h.known.echo.GetStreamRate() > 0:
		return float64(h.known.echo.GetStreamRate())
	case planned > 0 && (h == nil || h.known.echo == nil):
		return planned
	}
	return olderRate
}

// tell says something to a host's agent, if there is one.
func (f *Fleet) tell(host string, m *dyetracev1.StreamUnderlay) {
	f.mu.Lock()
	var s *session
	if h := f.hosts[host]; h != nil {
		s = h.session
	}
	f.mu.Unlock()
	if s != nil {
		s.send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_StreamUnderlay{StreamUnderlay: m}})
	}
}

// counted takes in an agent's report, and says whether it was asked for and makes sense.
func (st *streams) counted(host string, m *dyetracev1.UnderlayCounts) bool {
	ports := len(m.GetSourcePorts())
	if ports > maxColumns || len(m.GetPassed()) != ports || len(m.GetLostBack()) != ports || len(m.GetLostThere()) != ports || len(m.GetUnclear()) != ports {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	h := st.sent[host]
	switch {
	case h == nil || m.GetSet() > h.message.Set:
		return false
	case m.GetSet() < h.message.Set:
		return true // of streams that were asked for, and are no more
	case int(m.GetTarget()) >= len(h.targets):
		return false
	}
	c := StreamCount{Error: m.GetError(), Silent: int(m.GetSilent()), SilentFor: time.Duration(min(m.GetSilentNs(), uint64(maxSilence)))}
	c.Src, _ = netip.ParseAddr(m.GetSrcIp())
	for i := range ports {
		c.Ports = append(c.Ports, PortCount{Port: uint16(m.SourcePorts[i]), Passed: int(m.Passed[i]), Back: int(m.LostBack[i]),
			There: int(m.LostThere[i]), Unclear: int(m.Unclear[i])})
	}
	t := h.targets[m.GetTarget()]
	for _, s := range st.wanted {
		for i := range s.targets {
			if s.targets[i] == t && len(s.counts) < maxCounts {
				c.Target = i
				s.counts = append(s.counts, c)
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}
		}
	}
	return true
}
