package fleet

import (
	"context"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Refresh asks the agents of hosts for the state of their hosts as it is now, and returns when
// all have told the book, or ctx is done. Hosts without an agent are passed over: the book knows.
func (f *Fleet) Refresh(ctx context.Context, hosts []string) {
	var waits []<-chan struct{}
	for _, name := range hosts {
		f.mu.Lock()
		var s *session
		if h := f.hosts[name]; h != nil {
			s = h.session
		}
		f.nextExplain++
		id := f.nextExplain
		f.mu.Unlock()
		if s == nil {
			continue
		}
		if wait := s.refresh(id); wait != nil {
			waits = append(waits, wait)
		}
	}
	for _, wait := range waits {
		select {
		case <-wait:
		case <-ctx.Done():
			return
		}
	}
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
