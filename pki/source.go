package pki

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// source holds the party that files hold now.
type source struct {
	files  Files
	accept func(*Party) error // what more a party must be; nil is anything

	mu    sync.Mutex
	party *Party
	state string // of the files, when they were last read
}

func newSource(f Files, accept func(*Party) error) (*source, error) {
	s := &source{files: f, accept: accept, state: stateOf(f)}
	p, err := s.load(time.Now())
	if err != nil {
		return nil, err
	}
	s.party = p
	return s, nil
}

func (s *source) load(now time.Time) (*Party, error) {
	p, err := Load(s.files, now)
	if err == nil && s.accept != nil {
		err = s.accept(p)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// current returns the party to use at now: what the files hold, or what they held last where
// they cannot be used and that has not expired.
func (s *source) current(now time.Time) (*Party, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state := stateOf(s.files); state != s.state {
		// Taken before the files are read: a change in between is seen next time.
		s.state = state
		p, err := s.load(now)
		if err != nil {
			slog.Warn("certificate files changed and cannot be used, the former stay in force", "err", err)
		} else {
			s.party = p
		}
	}
	if err := checkDates(s.party.Leaf, now); err != nil {
		return nil, fmt.Errorf("tls.cert: %s: %w", s.files.Cert, err)
	}
	return s.party, nil
}

// stateOf changes when a file is written to or replaced; three stat(2) a handshake are nothing
// beside its signatures.
func stateOf(f Files) string {
	var state string
	for _, path := range []string{f.CA, f.Cert, f.Key} {
		fi, err := os.Stat(path)
		if err != nil {
			state += "absent\n"
			continue
		}
		state += fmt.Sprintf("%d %d %d\n", inode(fi), fi.Size(), fi.ModTime().UnixNano())
	}
	return state
}
