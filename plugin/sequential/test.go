package sequential

import (
	"fmt"
	"math"
)

// Plan is a sequential test of one path's loss. The zero Plan is none.
type Plan struct {
	// P0 is the share of probes that may be lost, P1 the share that is too much; 0 < P0 < P1 < 1.
	P0, P1 float64
	// Alpha bounds the chance of Above at P0, Beta that of Within at P1. What ends Open is in neither: who takes that for
	// Within wants a Max where little of it is left at P1, and a Beta below what both may be together.
	Alpha, Beta float64
	// Max bounds the probes.
	Max int
}

// Decision is what a test says.
type Decision uint8

// Decisions.
const (
	// More probes are needed.
	More Decision = iota
	// Within: it loses less than P1.
	Within
	// Above: it loses more than P0.
	Above
	// Open: Max probes did not decide it.
	Open
)

func (d Decision) String() string {
	return [...]string{"more", "within", "above", "open"}[d]
}

// Validate says which number of a plan is wrong.
func (p Plan) Validate() error {
	switch {
	case !(p.P0 > 0 && p.P0 < p.P1 && p.P1 < 1):
		return fmt.Errorf("p0 %g, p1 %g: want 0 < p0 < p1 < 1", p.P0, p.P1)
	case !(p.Alpha > 0 && p.Alpha < 0.5 && p.Beta > 0 && p.Beta < 0.5):
		return fmt.Errorf("alpha %g, beta %g: want both above 0 and below 0.5", p.Alpha, p.Beta)
	case p.Max < 1:
		return fmt.Errorf("max %d: want 1 or more", p.Max)
	}
	return nil
}

// upper and lower are the bounds of the log likelihood ratio.
func (p Plan) upper() float64 { return math.Log((1 - p.Beta) / p.Alpha) }
func (p Plan) lower() float64 { return math.Log(p.Beta / (1 - p.Alpha)) }

// steps are what a probe that was lost, and one that arrived, add to the log likelihood ratio.
func (p Plan) steps() (lost, arrived float64) {
	return math.Log(p.P1 / p.P0), math.Log1p(-p.P1) - math.Log1p(-p.P0)
}

// Decide says what so many probes show, of which some were lost. It is to be asked after each
// probe: only then do the error rates hold.
func (p Plan) Decide(probes, lost int) Decision {
	l, a := p.steps()
	switch s := float64(lost)*l + float64(probes-lost)*a; {
	case s >= p.upper():
		return Above
	case s <= p.lower():
		return Within
	case probes >= p.Max:
		return Open
	}
	return More
}

// Expected returns how many probes the test takes on average on a path that loses the share p,
// by Wald's approximation, which leaves out that the last step overshoots; Max at the most.
func (p Plan) Expected(rate float64) float64 {
	l, a := p.steps()
	drift := rate*l + (1-rate)*a
	var n float64
	switch {
	case rate <= p.P0:
		n = (p.Alpha*p.upper() + (1-p.Alpha)*p.lower()) / drift
	case rate >= p.P1:
		n = (p.Beta*p.lower() + (1-p.Beta)*p.upper()) / drift
	default:
		// Where drift is zero it is that long; it is the longest there is.
		n = -p.upper() * p.lower() / (rate*l*l + (1-rate)*a*a)
	}
	return min(max(n, 1), float64(p.Max))
}

// AllLost returns how many probes in a row must be lost until that is chance on a path which loses
// the share p0 with a probability of at most alpha.
func AllLost(p0, alpha float64) int {
	// The epsilon keeps 0.01³ from being a hair more than 1e-6.
	return max(1, int(math.Ceil(math.Log(alpha)/math.Log(p0)-1e-9)))
}

// turnedOdds is how much likelier it must be that a path began to lose all than that it lost at one rate.
const turnedOdds = 1000

// Turned says that a path which loses some, or lost none, has begun to lose all: of so many probes that arrived
// and that were lost the last ones in a row were lost, and that is no chance. The likelihood of two rates, the
// second being 1, is compared with that of one, each at its likeliest, and the place where it turned may have
// been any. 6 in a row turn a path that lost one of 21, 29 one that lost half of 20. Of paths that go on to lose
// the same share of 150 probes one in 1000 is said to have turned.
func Turned(arrived, lost, last int) bool {
	if last <= 0 || arrived <= 0 || last > lost {
		return false
	}
	return logLikelihood(arrived, lost-last)-logLikelihood(arrived, lost) > math.Log(turnedOdds*float64(arrived+lost))
}

// logLikelihood is that of so many probes that arrived and were lost, at the rate that makes it most.
func logLikelihood(arrived, lost int) (sum float64) {
	n := float64(arrived + lost)
	for _, k := range []float64{float64(arrived), float64(lost)} {
		if k > 0 {
			sum += k * math.Log(k/n)
		}
	}
	return sum
}

// Guard watches one path, or what many paths have in common, for ever. The zero Guard is healthy.
type Guard struct {
	// Probes and Lost are those that speak: since the guard last had no suspicion, and once it has
	// raised the alarm since it last was sure of that.
	Probes, Lost int
	// Alarm is raised when loss is Above, and cleared when so many probes arrive that it is not.
	Alarm bool
	score float64
}

// Add takes in one probe, and reports whether the alarm was raised or cleared by it. The mean
// number of probes between false alarms on a path that loses P0 is at least 1/Alpha (Lorden, 1971:
// the bound is exp(threshold)); Max and Beta bound nothing.
func (g *Guard) Add(p Plan, lost bool) (changed bool) {
	if lost {
		return g.AddMany(p, 1, 1)
	}
	return g.AddMany(p, 1, 0)
}

// AddMany takes in so many probes at once, of which some were lost, in what order nobody knows, and looks
// once. False alarms are no more often than if each were taken in by itself: the score is never above
// what it would be then.
func (g *Guard) AddMany(p Plan, probes, lost int) (changed bool) {
	if probes <= 0 {
		return false
	}
	l, a := p.steps()
	g.Probes += probes
	g.Lost += lost
	g.score += float64(lost)*l + float64(probes-lost)*a
	if !g.Alarm {
		switch {
		case g.score >= math.Log(1/p.Alpha):
			g.Alarm, g.score = true, 0
			return true
		case g.score <= 0:
			*g = Guard{}
		}
		return false
	}
	// The same turned round: what was lost since is not held against what arrives now.
	if g.score = min(g.score, 0); g.score <= math.Log(clearing) {
		*g = Guard{}
		return true
	}
	if g.Lost >= fadeAt {
		g.halve()
	}
	return false
}

const (
	// clearing bounds how often an alarm is cleared on a path that still loses P1: the mean number of probes
	// until then is at least 1/clearing (Lorden, 1971).
	clearing = 1e-4
	// fadeAt is how many lost probes the figures of an alarm are of at the most: their interval is a third of
	// the rate to either side.
	fadeAt = 40
)

// halve lets what was counted fade, so that the rate shown is that of late.
func (g *Guard) halve() { g.Probes, g.Lost = g.Probes/2, g.Lost/2 }
