package sequential

import "math"

// Interval is a two-sided confidence interval of a rate.
type Interval struct {
	Low, High float64
}

// Confidence is the level of intervals.
const Confidence = 0.95

// Loss returns the interval of the loss rate after so many probes, of which some were lost: exact
// (C. J. Clopper and E. S. Pearson, 1934), so that for a fixed number of probes it covers the true
// rate in at least 95 % of cases. Where a sequential test chose the number, its end leans towards
// what it decided.
func Loss(probes, lost int) Interval {
	if probes <= 0 || lost < 0 || lost > probes {
		return Interval{0, 1}
	}
	const tail = (1 - Confidence) / 2
	i := Interval{0, 1}
	if lost > 0 {
		i.Low = betaQuantile(tail, float64(lost), float64(probes-lost+1))
	}
	if lost < probes {
		i.High = betaQuantile(1-tail, float64(lost+1), float64(probes-lost))
	}
	return i
}

// betaQuantile returns the x at which the regularised incomplete beta function of a and b is q.
func betaQuantile(q, a, b float64) float64 {
	lo, hi := 0.0, 1.0
	for range 60 { // halves: 2⁻⁶⁰ is below what a float64 tells apart
		mid := (lo + hi) / 2
		if betaCDF(mid, a, b) < q {
			lo = mid
		} else {
			hi = mid
		}
	}
	return (lo + hi) / 2
}

// betaCDF is the regularised incomplete beta function, DLMF 8.17.22: a continued fraction that
// converges fast below (a+1)/(a+b+2), and by symmetry (8.17.4) elsewhere.
func betaCDF(x, a, b float64) float64 {
	switch {
	case x <= 0:
		return 0
	case x >= 1:
		return 1
	case x > (a+1)/(a+b+2):
		return 1 - betaCDF(1-x, b, a)
	}
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	front := math.Exp(lab-la-lb+a*math.Log(x)+b*math.Log1p(-x)) / a
	// Lentz's method, as modified by Thompson and Barnett (1986).
	const tiny, eps = 1e-300, 1e-15
	c, d := 1.0, 1-(a+b)*x/(a+1)
	d = 1 / orTiny(d, tiny)
	f := d
	for m := 1.0; m < 10_000; m++ {
		step := m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		d = 1 / orTiny(1+step*d, tiny)
		c = orTiny(1+step/c, tiny)
		f *= c * d
		step = -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		d = 1 / orTiny(1+step*d, tiny)
		c = orTiny(1+step/c, tiny)
		f *= c * d
		if math.Abs(c*d-1) < eps {
			break
		}
	}
	return front * f
}

func orTiny(v, tiny float64) float64 {
	if math.Abs(v) < tiny {
		return tiny
	}
	return v
}
