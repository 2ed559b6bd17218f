package verdict

import (
	"fmt"
)

// notes are what was odd about a probe that arrived, and of what sort that is: the network's, if
// some of it was. loss is what a test says of the others.
func (j *judgement) notes(loss *Loss) (notes []string, kind CauseKind) {
	note := func(k CauseKind, text string) {
		if text == "" {
			return
		}
		notes = append(notes, text)
		if kind == 0 || kind >= CauseAgent && k < CauseAgent {
			kind = k
		}
	}
	if lost := loss.note(); lost != "" {
		note(CauseLoss, lost)
	} else {
		note(j.others())
	}
	missing, first, bare := 0, -1, false
	for i := range j.t.last {
		if _, seen := j.t.sample(i); seen || j.Path.Points[i].Absent != "" {
			continue
		}
		if !j.deaf(j.t, i).none() {
			bare = true
		} else if missing++; first < 0 {
			first = i
		}
	}
	if bare {
		note(CauseUnseen, "the answer was not recognised all the way: it does not bear the stain's ToS")
	}
	switch {
	case missing == 1:
		note(CauseSamples, fmt.Sprintf("passed %s without a sample", j.Path.Points[first]))
	case missing > 1:
		note(CauseSamples, fmt.Sprintf("passed %d points without a sample, %s first", missing, j.Path.Points[first]))
	}
	twice := CauseDuplicate
	if j.t.looped {
		twice = CauseLoop
	}
	note(twice, j.duplicates())
	note(CauseStaleVTEP, j.stranger())
	if len(j.t.Stray) > 0 {
		note(CauseDuplicate, fmt.Sprintf("also seen at %s, off its way", j.t.Stray[0]))
	}
	return notes, kind
}

// others says what became of the attempts that did not arrive, and of what sort that is.
func (j *judgement) others() (CauseKind, string) {
	lost, unclear := 0, 0
	var first *trail
	for i := range j.trails {
		switch t := &j.trails[i]; {
		case t == j.t || j.arrived(t):
		case t.next >= 0:
			if lost++; first == nil {
				first = t
			}
		default:
			unclear++
		}
	}
	all := len(j.trails) + j.Arrived
	switch {
	case lost > 0 && first.next >= 0:
		return CauseLoss, fmt.Sprintf("%d of %d probes lost, between %s and %s", lost, all, j.Path.Points[first.last], j.Path.Points[first.next])
	case unclear > 0:
		return CauseUnseen, fmt.Sprintf("%d of %d probes could not be followed", unclear, all)
	}
	return 0, ""
}

func (j *judgement) duplicates() string {
	switch {
	case j.t.doubled < 0:
		return ""
	case j.t.looped:
		return fmt.Sprintf("seen again at %s with another TTL: a loop", j.Path.Points[j.t.doubled])
	}
	return fmt.Sprintf("seen more than once at %s: duplicated before it", j.Path.Points[j.t.doubled])
}

// lossNotes are what else is known of a loss: clues, none of which changes the verdict.
func (j *judgement) lossNotes(l *loss) []string {
	var notes []string
	for _, s := range j.t.Stray {
		if s.Direction != l.last.Direction {
			continue
		}
		text := fmt.Sprintf("seen at %s, off its way", s)
		if s.Host != l.receiver.Host && s.Host != l.sender.Host {
			text = fmt.Sprintf("seen at %s, which does not have %s", s, l.name)
		}
		notes = append(notes, text)
		break // the first is clue enough; a flood would fill the line
	}
	if key, wrong := j.wrongKey(l); wrong {
		notes = append(notes, fmt.Sprintf("it came with tunnel key %d, but the key of network %s is %d: look at %s",
			key, j.network(l), l.last.TunID, l.sender.Host))
	}
	for _, gap := range []string{j.Path.From.Gap, j.Path.To.Gap} {
		if gap != "" && j.Path.From.Host != j.Path.To.Host {
			notes = append(notes, gap)
		}
	}
	if l.x != nil && l.x.Outcome == Tunnelled && l.x.Reason != "" {
		notes = append(notes, fmt.Sprintf("%s's switch says: %s", l.last.Host, l.x.Reason))
	}
	if n := j.duplicates(); n != "" {
		notes = append(notes, n)
	}
	if n := j.earlier(); n != "" {
		notes = append(notes, n)
	}
	return notes
}

// earlier says that other attempts were lost before the judged one was.
func (j *judgement) earlier() string {
	n := 0
	var first *trail
	for i := range j.trails {
		if t := &j.trails[i]; t.last >= 0 && t.last < j.t.last && t.next >= 0 && t.next <= j.t.last {
			if n++; first == nil {
				first = t
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d probes lost earlier, after %s", n, len(j.trails), j.Path.Points[first.last])
}
