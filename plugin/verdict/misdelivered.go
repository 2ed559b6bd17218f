package verdict

import (
	"fmt"

	"github.com/dyetrace/dyetrace/stain"
)

// misdelivered is the point to-instance that lies next on the host that saw the packet last, if it was
// seen to leave that bridge for an instance by another port; -1 if not.
func (j *judgement) misdelivered() int {
	last := &j.Path.Points[j.t.last]
	for i := j.t.last + 1; i < len(j.Path.Points); i++ {
		p := &j.Path.Points[i]
		if p.Host != last.Host || p.Direction != last.Direction {
			break
		}
		if p.Kind == stain.ToInstance && !j.beside(j.t.Attempt, i).none() {
			return i
		}
	}
	return -1
}

// delivery judges a packet that left by another port than that of point i. By its number alone that
// port may be the instance's, plugged in anew. If the flows name another, too, two witnesses agree.
func (j *judgement) delivery(i int) Result {
	l := j.loss(i)
	port := l.receiver.Port
	if l.x == nil || l.x.Outcome != Delivered || port == "" || l.receiver.Absent != "" || l.x.to(port) {
		r := j.short()
		if need := j.need(&l); need != nil && port != "" && l.receiver.Absent == "" && r.Verdict == Unknown {
			need.Decides, r.Need = true, need
		}
		return r
	}
	r := Result{
		Verdict: Faulty, Segment: j.segment(l.from, i), Host: l.last.Host, Kind: CauseMisdirected,
		Cause: join(append([]string{fmt.Sprintf("%s delivers it to %s, but %s is at %s", l.last.Host, l.x.Port, l.name, port)},
			j.lossNotes(&l)...)...),
	}
	j.replay(&r, l.from)
	return r
}
