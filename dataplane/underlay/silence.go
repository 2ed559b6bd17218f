package underlay

import "time"

// A stream that had answers and has none is the first sign of a link that is down. It is told at once, and
// is a sign only: of which way it is, of whose fault, and whether it is one, it says nothing.
//
// A false sign takes silentAfter questions in a row that are lost, or later than all of late. By chance: where a
// hundredth is lost each way, once in 4 · 10¹³ questions; where a tenth is, once in 600,000, which is 50 min at 200 a
// second. By delay: the way must become longer by silentFor, or the other host, or a switch, stand still for silentFor longer than it did in the
// last keptWindows. One window in 80 has a stall that is longer than those of so many
// before, by however little; so where stalls are of less than silentFor there is none, and of a host that stands still for
// hundreds of milliseconds time and again one in 20 s at the most.
const (
	// silentAfter is how many questions in a row must be overdue, and silentFor for how long the first of them:
	// at 200 a second these eight have been sent at two times, restTick apart. Where much is lost of late it must be one from every
	// source port: of two equal ways, one of which is down, eight in a row may go by that one.
	silentAfter = 8
	silentFor   = 30 * time.Millisecond
	// overdue is what an answer is longer than others took before it is overdue: two looks, of those while it is waited for.
	overdue = 2 * streamTick
	// A window is a quarter of a second, and 10 answers at the least; so many are kept: for 20 s where 200 are asked a second.
	window, windowAnswers, keptWindows = 250 * time.Millisecond, 10, 80
	// familiar is how many answers must have come, since there were none, for their absence to tell.
	familiar = 20
	// maxStep is how much time passes between two looks at the most, as far as silence is concerned: a host that stood
	// still, or has not read what came, has not been silent for as long.
	maxStep = restTick
)

// silence is what a stream knows of when answers come. Its clock is that of the asking host as it runs: see maxStep.
type silence struct {
	clock   time.Duration
	next    uint32 // after the last question that was answered
	answers int    // since the last silence
	silent  bool
	over    uint32 // after the last question of that; 0 is that all of those are counted
	windows [keptWindows]span
	now     int // the window of now
	taken   int // answers into it, since
	since   time.Duration
	// refused are questions in a row that this host would not send: it has no way there. from is when the first was due.
	refused int
	from    time.Duration
}

// tick has time pass.
func (q *silence) tick(clock time.Duration) { q.clock = clock }

// span is how long the answers of a window took; longest is that of those, too, that others had overtaken.
type span struct{ quickest, slowest, longest time.Duration }

// took takes in how long an answer took.
func (q *silence) took(trip time.Duration) {
	if q.taken >= windowAnswers && q.clock-q.since >= window {
		q.now = (q.now + 1) % keptWindows
		q.taken, q.since = 0, q.clock
		q.at(0).longest = 0
	}
	w := &q.windows[q.now]
	if q.taken == 0 {
		*w = span{trip, trip, max(w.longest, trip)}
	}
	w.quickest, w.slowest, w.longest = min(w.quickest, trip), max(w.slowest, trip), max(w.longest, trip)
	q.taken++
}

// late is how long an answer takes at the most: as long as the way is in this window and the one before, and as anybody stood still in all that are
// kept. What all answers take is the way; it may be a shorter one by now, and what was slow in the window in which it became that is the old one.
func (q *silence) late() time.Duration {
	way, still := q.way(), time.Duration(0)
	for ago := range keptWindows {
		w := q.at(ago)
		usual := w.quickest
		if ago > 0 {
			usual = max(usual, q.at(ago-1).quickest)
		}
		if ago < keptWindows-1 {
			usual = max(usual, q.at(ago+1).quickest)
		}
		still = max(still, w.slowest-usual)
	}
	return way + still
}

// at is the window so many before that of now.
func (q *silence) at(ago int) *span { return &q.windows[(q.now-ago+keptWindows)%keptWindows] }

// longest is how long any answer took of late.
func (q *silence) longest() time.Duration { return max(q.at(0).longest, q.at(1).longest) }

// way is how long answers take by now where nobody stands still.
func (q *silence) way() time.Duration { return max(q.at(0).quickest, q.at(1).quickest) }

// heard takes in that a question was answered, as soon as that is read.
func (s *stream) heard(serial uint32) {
	if int32(s.head-serial) <= 0 {
		return // never sent
	}
	q := &s.quiet
	if int32(serial+1-q.next) <= 0 { // an older one, which was overtaken: by what went another way, or when the way had become shorter
		if w := q.at(0); s.head-serial <= streamSlots {
			w.longest = max(w.longest, q.clock-s.slot(serial).clock)
		}
		return
	}
	if s.head-serial <= streamSlots {
		q.took(q.clock - s.slot(serial).clock)
	}
	q.next, q.refused = serial+1, 0
	if q.silent {
		q.silent, q.answers, q.over = false, 0, serial
	}
	q.answers++
}

// unheard says that a question was asked when none was answered.
func (q *silence) unheard(serial uint32) bool {
	return q.silent && int32(serial-q.next) >= 0 || q.over != 0 && int32(serial-q.over) < 0
}

// refused takes in that this host has no way to send a question.
func (s *stream) refused() {
	q := &s.quiet
	if q.refused == 0 {
		q.from = q.clock
	}
	q.refused++
}

// listen says that the stream is silent now, and was not before.
func (s *stream) listen() bool {
	q := &s.quiet
	if q.silent || q.answers < familiar {
		return false
	}
	want := uint32(silentAfter)
	if s.share > heavy {
		want = uint32(max(silentAfter, s.ports))
	}
	q.silent = q.refused >= int(want) && q.clock-q.from >= silentFor
	if row := s.head - q.next; row >= want {
		first := s.head - min(row, streamSlots) // what is older has waited longer
		late := q.late() + overdue
		q.silent = q.silent || q.clock-s.slot(first+want-1).clock >= late && q.clock-s.slot(first).clock >= late+silentFor
	}
	return q.silent
}

// silentNow is how many questions in a row are not answered, and since when, where the stream is silent.
func (s *stream) silentNow() (questions int, since time.Time) {
	if !s.quiet.silent {
		return 0, time.Time{}
	}
	row := s.head - s.quiet.next
	if row == 0 {
		return s.quiet.refused, time.Time{}
	}
	return int(row) + s.quiet.refused, s.slot(s.head - min(row, streamSlots)).at
}
