package fleet

import (
	"context"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Refresh asks the agents of hosts for the state of their hosts as it is now, and returns when
// all have told the book, or ctx is done. Hosts without an agent are passed over: the book knows.
func (f *Fleet) Refresh(ctx context.Context, hosts []string) {
	type asked struct {
		session *session
		id      uint64
		answer  <-chan struct{}
	}
	var waits []asked
	for _, name := range hosts {
		f.mu.Lock()
		var s *session
		if h := f.hosts[name]; h != nil {
			s = h.session
		}
		f.mu.Unlock()
		id := f.nextID()
		if s == nil {
			continue
		}
		if answer := s.refresh(id); answer != nil {
			waits = append(waits, asked{s, id, answer})
		}
	}
	for _, w := range waits {
		select {
		case <-w.answer:
		case <-ctx.Done():
			w.session.forgo(w.id)
		}
	}
}

// forgo waits for an answer no longer.
func (s *session) forgo(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.fresh, id)
}

// refresh asks, and returns what is closed by the answer, or by the end of the session; nil if it
// has ended.
func (s *session) refresh(id uint64) <-chan struct{} {
	answered := make(chan struct{})
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil
	}
	s.fresh[id] = answered
	s.mu.Unlock()
	s.send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Refresh{Refresh: &dyetracev1.Refresh{Id: id}}})
	return answered
}

func (s *session) refreshed(id uint64) {
	s.mu.Lock()
	answered, ok := s.fresh[id]
	delete(s.fresh, id)
	s.mu.Unlock()
	if !ok {
		s.fleet.metrics.unasked.Inc()
		return
	}
	close(answered)
}
