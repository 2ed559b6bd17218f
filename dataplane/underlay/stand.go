package underlay

import "math/rand/v2"

// maxStreams bounds the streams that a responder remembers: one for each host that asks, and some
// that ended. Those that were heard first are forgotten for new ones.
const maxStreams = heardFrom

// heardStreams are those that a responder knows.
type heardStreams struct {
	by    map[uint64]*heardStream // by session
	order []uint64                // a ring once it is full
	next  int
}

// heardStream is what a responder has seen of a stream.
type heardStream struct {
	l        *listener
	epoch    uint32
	withheld uint32
	// head is the highest serial number that came; of those before, bit i of seen is that of head-i.
	head uint32
	seen [seenBits / 64]uint64
}

// stand notes a question of a stream, and sets how it stands with that; false if it is not to be answered.
func (r *Responder) stand(l *listener, d *Datagram, overflows uint32, allowed bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.streams.get(d.Session)
	if s.l != l {
		*s = heardStream{l: l, epoch: rand.Uint32() | 1, head: d.Serial}
	}
	s.note(d.Serial)
	if !allowed {
		s.withheld++
		return false
	}
	d.Standing = Standing{Epoch: s.epoch, Overflows: overflows, Withheld: s.withheld, Known: s.known(d.Serial), Seen: s.before(d.Serial)}
	return true
}

// withhold counts an answer that could not be sent.
func (r *Responder) withhold(session uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.streams.by[session]; s != nil {
		s.withheld++
	}
}

func (h *heardStreams) get(session uint64) *heardStream {
	if s := h.by[session]; s != nil {
		return s
	}
	if h.by == nil {
		h.by = map[uint64]*heardStream{}
	}
	if len(h.order) < maxStreams {
		h.order = append(h.order, session)
	} else {
		delete(h.by, h.order[h.next])
		h.order[h.next] = session
		h.next = (h.next + 1) % maxStreams
	}
	s := &heardStream{}
	h.by[session] = s
	return s
}

// note takes in a question. Serial numbers are compared as RFC 1982 has it.
func (s *heardStream) note(serial uint32) {
	if ahead := serial - s.head; ahead != 0 && ahead < 1<<31 {
		s.seen = shiftUp(s.seen, ahead)
		s.head = serial
	}
	if i := s.head - serial; i < seenBits {
		s.seen[i/64] |= 1 << (i % 64)
	}
}

// known is Standing.Known in the answer to a question: one that was overtaken tells of less.
func (s *heardStream) known(serial uint32) uint32 {
	behind := s.head - serial + 1
	return seenBits - min(behind, seenBits)
}

// before is Standing.Seen in the answer to a question.
func (s *heardStream) before(serial uint32) [seenBits / 64]uint64 {
	return shiftDown(s.seen, s.head-serial+1)
}

// shiftUp moves each bit n places up; shiftDown the other way.
func shiftUp(b [seenBits / 64]uint64, n uint32) (to [seenBits / 64]uint64) {
	words, bits := int(n/64), n%64
	for i := len(b) - 1; i >= words && n < seenBits; i-- {
		to[i] = b[i-words] << bits
		if bits > 0 && i > words {
			to[i] |= b[i-words-1] >> (64 - bits)
		}
	}
	return to
}

func shiftDown(b [seenBits / 64]uint64, n uint32) (to [seenBits / 64]uint64) {
	words, bits := int(n/64), n%64
	for i := 0; n < seenBits && i+words < len(b); i++ {
		to[i] = b[i+words] >> bits
		if bits > 0 && i+words+1 < len(b) {
			to[i] |= b[i+words+1] << (64 - bits)
		}
	}
	return to
}
