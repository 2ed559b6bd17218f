// Package pace has its two parts here: a [Pace] has a [Bucket] of tokens for each instance, which a probe takes one of at both
// of its ends; a [Schedule] is the order in which a patrol goes round its pairs.
package pace
