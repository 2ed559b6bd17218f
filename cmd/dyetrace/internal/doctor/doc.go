// Package doctor looks whether a machine has what an agent, a lab or a user of Dyetrace needs,
// and says what to do where it has not.
// It changes nothing: what it makes to try something out is gone when the check ends.
package doctor
