package run

import (
	"time"

	"github.com/dyetrace/dyetrace/plugin/pace"
)

// Many pairs become suspect by one fault, and share instances: of a guest that does not answer, of a tunnel
// that is down. If all were begun at once, the pace of an instance would be spent on first probes, and none of the pairs would have
// the further ones that prove its loss. What one of them is worth is known; so a few are begun, and others when those are
// concluded, or something of them has arrived, or the pace would leave probes unused.

// silentPairs is how many pairs of an instance may be under way in an examination of which nothing has arrived: as
// many as have their probes (one by tcp, two echoes, and one to spare) by what a patrol leaves of the instance's burst.
func (x *execution) silentPairs() int {
	return max(1, int(pace.PatrolShare*x.pace.Burst())/(fewAttempts+1))
}

// testShare of an instance's burst is left by an examination that tests what share of a pair's probes is lost, which takes dozens of
// them: to what is looked at next, by whichever examination, and to a patrol, which has every other token there.
const testShare = 0.25

// leaves is how many of its instances' tokens a probe leaves to others: none after one that was lost, since it may be broken by now.
func (x *execution) leaves(number uint32) float64 {
	track := x.ledger.of(number)
	if !x.options.examines() || !x.arrived(track) {
		return 0
	}
	if x.ledger.tests[track] != nil {
		if _, lost := x.ledger.lostLast(track); lost > 0 {
			return 0
		}
	}
	return max(0, testShare*x.pace.Burst()-1)
}

// admit parts queued probes of an examination in those that may be sent as soon as the pace lets them, and those of
// pairs that are not to be begun yet.
func (x *execution) admit(queue []uint32, now time.Time) (ready, later []uint32) {
	if !x.options.examines() {
		return queue, nil
	}
	most, more, begin := x.silentPairs(), map[*pace.Bucket]int{}, map[int]bool{}
	for _, number := range queue {
		pair := x.pairOf(number)
		if l := &x.lanes[pair]; !x.progress[pair].begun && !begin[pair] && !x.abreast(pair) {
			silent := max(x.silentAt[l.Src]+more[l.Src], x.silentAt[l.Dst]+more[l.Dst])
			// Of those that the pace has for it one at a time.
			if silent >= most && (more[l.Src]+more[l.Dst] > 0 || !x.affords(l, now)) {
				later = append(later, number)
				continue
			}
			begin[pair] = true
			more[l.Src]++
			more[l.Dst]++
		}
		ready = append(ready, number)
	}
	return ready, later
}

// affords says that the instances of a lane have as many tokens as a patrol leaves to examinations.
func (x *execution) affords(l *pace.Lane, now time.Time) bool {
	return x.pace.Means([]pace.Lane{*l}, pace.Alike(0), pace.PatrolShare*x.pace.Burst(), now)[0].Some
}

// admitted takes in that probes are sent.
func (x *execution) admitted(numbers []uint32) {
	if !x.options.examines() {
		return
	}
	for _, number := range numbers {
		pair := x.pairOf(number)
		p := &x.progress[pair]
		if p.begun {
			continue
		}
		p.begun, p.silent = true, !x.abreast(pair) // which may end before the pair is concluded
		if p.silent {
			x.silentAt[x.lanes[pair].Src]++
			x.silentAt[x.lanes[pair].Dst]++
		}
	}
}

// loud takes in that a probe of a pair has arrived, or that it is concluded.
func (x *execution) loud(pair int) {
	p := &x.progress[pair]
	if !p.silent {
		return
	}
	p.silent, x.freed = false, true
	x.silentAt[x.lanes[pair].Src]--
	x.silentAt[x.lanes[pair].Dst]--
}
