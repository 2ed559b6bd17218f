package underlay

import "time"

const (
	// streamSlots bounds the questions of a stream that wait to be told of. At 2,000 a second that is a quarter of a
	// second; more than seenBits are of no use.
	streamSlots = 512
	// firstSettle is how much later a question must have been sent from the same source port for its answer
	// to tell that an earlier one was lost: else that may have been overtaken, though packets of one flow are
	// kept in order nearly everywhere (RFC 4737, section 1.1). It is doubled, up to lastSettle, when that has
	// happened all the same, and halved again when it has not for orderly answers; more would be beyond what
	// an answer tells of at 1,000 a second. Where not even that is enough nothing is claimed for muddled
	// answers, so that what is overtaken again and again, three at a time, is taken for a loss of 0.3 %: a guard of
	// 0.1 % against 1 % is raised by 0.39 %. Where as many as an outage were overtaken in a row the way has become
	// shorter, and nothing is claimed for shortened answers: more than outweigh one loss. By an answer to another source port, which may go another way, it
	// takes elsewhere times as long: with 40 ms a busy machine (two processors, load 8) with two ways between two
	// namespaces counted some as lost that were not.
	firstSettle, lastSettle = 5 * time.Millisecond, 160 * time.Millisecond
	orderly, muddled        = 20_000, 1000
	shortened               = 300
	elsewhere               = 40
	// giveUp is how long a question is waited for of which nothing is told.
	giveUp = 2 * time.Second
	// outage is how many questions in a row that are lost are one event, and no rate: many streams have the same, at the same moment. On a path
	// that loses a fifth of all packets by chance so many are once in 600; at a fiftieth, once in six millions.
	// But it is none where a source port is lost in so many runs in a row as gone, and for goneFor: its way is down.
	outage, gone = 4, 3
	goneFor      = time.Second
	// calm is how many questions in a row must arrive after a loss for a stream to be beyond suspicion. At a
	// loss of 1 % so many do once in 400 times; with 255, as many as outweigh one loss where 0.1 % is tried
	// against 1 %, one in 13, and 99 of 100 losses were found in 6 s instead of 4 (computed; 200 a second,
	// 1,000 under suspicion).
	calm = 600
	// closely is how many questions such a stream is looked at for at the most: 99 of 100 losses of 1 % are known
	// after 3,030 (computed), and whether all source ports lose or some is, in some hundredths of cases, after as many more. One that
	// lasts is not looked at so closely for ever.
	closely = 10_000
	// heavy is from which share of the last questions or so, lost or unclear, on a stream is slowed down to
	// troubledRate; and mute how long nothing may be answered: what loses that much is known to, and a link
	// that is full must not be kept so by us (RFC 8085, section 3.1).
	// What is lost while nothing at all is answered says nothing of how much will be when something is again.
	heavy, fade = 0.25, 0.05
	mute        = 500 * time.Millisecond
)

// Count is what became of the questions from one source port.
type Count struct {
	// Passed came there and back, Back came there and no further, There were lost on the way there;
	// of Unclear ones nothing is claimed.
	Passed, Back, There, Unclear uint32
}

type fate uint8

const (
	waiting fate = iota
	passed
	back
	there
	unclear
)

// stream is what one end knows of a stream that it sends. It is pure: no I/O, no clock.
type stream struct {
	ports  int
	settle time.Duration
	// head is the next serial number, tail the first that is not counted.
	head, tail uint32
	slots      [streamSlots]slot
	base       attested // of the last answer before tail
	counts     []Count  // by source port
	// gone is by source port in how many runs in a row it was lost, without an answer in between, and since when; crowded is how many
	// answers must come until it is forgotten that there was no room for a question.
	gone    []uint8
	since   []time.Time
	crowded int
	// run are those questions lost in a row that end at tail, the first of them.
	run      [outage - 1]lost
	runs     int
	suspect  int // see calm
	looked   int // see closely
	share    float64
	newest   time.Time // when the last question that was answered was sent
	overtook uint32
	ordered  int // answers since one was overtaken
	disorder int // answers for which nothing is claimed
	// passedBy is the last question that was overtaken, inRow how many in a row these were, and before what disorder was then.
	passedBy uint32
	inRow    int
	before   int
	quiet    silence
}

type slot struct {
	at    time.Time
	clock time.Duration // of silence
	fate  fate
	told  attested
}

// attested is what an answer told of faults that are not the network's.
type attested struct {
	known                      bool
	epoch, overflows, withheld uint32
	own                        uint32 // overflows of the asking sockets
}

type lost struct {
	port int
	fate fate
	at   time.Time
}

func newStream(ports int) *stream {
	return &stream{ports: ports, settle: firstSettle, counts: make([]Count, ports), gone: make([]uint8, ports), since: make([]time.Time, ports)}
}

// port is the number of the source port that a question is sent from.
func (s *stream) port(serial uint32) int { return int(serial) % s.ports }

func (s *stream) slot(serial uint32) *slot { return &s.slots[serial%streamSlots] }

// sent takes in that question head was sent.
func (s *stream) sent(now time.Time) {
	if s.newest.IsZero() {
		s.newest = now
	}
	if s.head-s.tail == streamSlots {
		s.count(unclear)
		s.settled() // what is known behind it is not unclear
		s.crowded = calm
	}
	*s.slot(s.head) = slot{at: now, clock: s.quiet.clock}
	s.head++
}

// answered takes in an answer. own tells the overflows of the asking sockets by now.
func (s *stream) answered(serial uint32, st *Standing, own func() uint32) {
	if s.head-serial-1 >= streamSlots {
		return // of long ago, or never sent
	}
	at := s.slot(serial)
	if serial-s.tail >= s.head-s.tail {
		if at.fate == back || at.fate == there {
			at.fate = passed
			if s.inRow++; serial != s.passedBy+1 {
				s.inRow, s.before = 1, s.disorder
			}
			s.passedBy = serial
			switch {
			case s.settle < lastSettle:
			case s.inRow < outage:
				s.disorder = muddled
			default:
				s.disorder = min(s.before+shortened, muddled)
			}
			s.settle = min(2*s.settle, lastSettle)
			s.ordered = 0
			s.overtook++
		}
		return
	}
	if at.fate == passed {
		return
	}
	at.fate = passed
	s.disorder = max(0, s.disorder-1)
	if s.ordered++; s.ordered >= orderly {
		s.settle, s.ordered = max(s.settle/2, firstSettle), 0
	}
	if at.at.After(s.newest) {
		s.newest = at.at
	}
	at.told = attested{known: true, epoch: st.Epoch, overflows: st.Overflows, withheld: st.Withheld}
	before, longest := s.base, s.quiet.longest()
	at.told.own = before.own
	fresh := false
	for k := s.tail; k != serial; k++ {
		e := s.slot(k)
		if e.fate == passed {
			before = e.told
			continue
		}
		i := serial - k - 1
		settle := s.settle
		if s.port(k) != s.port(serial) {
			settle *= elsewhere
		}
		settle = max(settle, longest) // by another way it may come yet
		if e.fate != waiting || i >= st.Known || at.at.Sub(e.at) < settle {
			continue
		}
		if !fresh {
			at.told.own, fresh = own(), true
		}
		if e.fate = tell(&before, &at.told, st.Seen[i/64]&(1<<(i%64)) != 0); s.disorder > 0 {
			e.fate = unclear
		}
	}
	if !fresh {
		at.told.own = before.own // known too low at the worst, so that less counts as lost
	}
	s.settled()
}

// tell says what became of a question between two answers.
func tell(before, after *attested, came bool) fate {
	switch {
	case !before.known || before.epoch != after.epoch:
		return unclear
	case came && before.withheld == after.withheld && before.own == after.own:
		return back
	case !came && before.overflows == after.overflows:
		return there
	}
	return unclear
}

// suspicious says that it should go faster.
func (s *stream) suspicious() bool {
	return s.suspect > 0 && s.looked < closely && s.quiet.refused == 0
}

// quickest is how many questions a second are of use at the most: an answer must tell of one that was sent from its port for as long before as
// is waited for, and what is not answered by then must have room.
func (s *stream) quickest() float64 {
	waits := max(s.settle, s.quiet.longest())
	if s.crowded > 0 { // there are ports of which only others' answers tell
		waits = max(waits, elsewhere*s.settle)
	}
	return min(float64(seenBits-2*s.ports), streamSlots/2) / (waits + streamTick).Seconds()
}

// fast says that a stream at that rate does not wait for the others to send: it is under suspicion, or would send too many
// in a row.
func (s *stream) fast(rate float64) bool {
	return s.suspicious() || rate > 1/streamTick.Seconds()
}

// hurries says that such a stream is to be looked at after streamTick: an answer is waited for, or it is fast.
func (s *stream) hurries(rate float64) bool { return s.head != s.quiet.next || s.fast(rate) }

// troubled says that much is lost of late, or that nothing is answered.
func (s *stream) troubled(now time.Time) bool {
	return s.share > heavy || s.head != s.tail && now.Sub(s.newest) > mute+s.quiet.way()
}

// settled counts what is known.
func (s *stream) settled() {
	for s.tail != s.head && s.slot(s.tail).fate != waiting {
		s.count(s.slot(s.tail).fate)
	}
}

// expire gives up questions of which nothing was told for long.
func (s *stream) expire(now time.Time) {
	for s.tail != s.head {
		e := s.slot(s.tail)
		if e.fate == waiting {
			if now.Sub(e.at) < giveUp {
				return
			}
			e.fate = unclear
		}
		s.count(e.fate)
	}
}

// count counts the question at tail.
func (s *stream) count(f fate) {
	e, c := s.slot(s.tail), &s.counts[s.port(s.tail)]
	e.fate = f
	if s.looked++; s.suspect == 0 {
		s.looked = 0
	}
	if !s.quiet.unheard(s.tail) {
		s.quiet.over = 0
		s.share *= 1 - fade
		if f != passed {
			s.share += fade
		}
	}
	switch f {
	case passed:
		s.endRun()
		s.gone[s.port(s.tail)] = 0
		s.crowded = max(0, s.crowded-1)
		s.base = e.told
		c.Passed++
		s.suspect = max(0, s.suspect-1)
	case there, back:
		if s.runs < len(s.run) {
			s.run[s.runs] = lost{s.port(s.tail), f, e.at}
		} else {
			c.Unclear++
		}
		s.runs++
	default:
		c.Unclear++
	}
	s.tail++
}

// endRun counts the questions that were lost in a row until one arrived.
func (s *stream) endRun() {
	for i := range min(s.runs, len(s.run)) {
		l := s.run[i]
		c := &s.counts[l.port]
		if s.gone[l.port] == 0 {
			s.since[l.port] = l.at
		}
		s.gone[l.port] = min(s.gone[l.port]+1, gone)
		switch {
		case s.runs >= outage && (s.gone[l.port] < gone || l.at.Sub(s.since[l.port]) < goneFor):
			c.Unclear++
		case l.fate == there:
			c.There++
		default:
			c.Back++
		}
		s.suspect = calm
	}
	s.runs = 0
}

// counted is how many questions counts are of, and how many of those were lost.
func (s *stream) counted() (total, lost uint32) {
	for _, c := range s.counts {
		total += c.Passed + c.There + c.Back + c.Unclear
		lost += c.There + c.Back
	}
	return total, lost
}
