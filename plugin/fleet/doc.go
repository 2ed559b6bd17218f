// Package fleet holds the sessions of the agents: what is asked of them, and what comes back.
// It never plans, never judges, and does not authenticate; who serves its handler does, and
// vouches for the host with [WithAgent].
//
// # One session per host
//
// An agent that says Hello for a host which has a session replaces it. A session ends when the
// agent goes, when it is silent for three heartbeats, when it does not read for [sendTimeout], or
// when more than [queueLength] messages wait for it. Each is a [Gone] for every run that the
// session took part in; a session that comes back takes no part in runs that began without it.
//
// # Queues
//
//	run ──▶ session.queue (256 messages) ──▶ agent       full: the session ends
//	agent ──▶ Assignment's mailbox (1 Mi samples) ──▶ run   full: samples are dropped, and [Lost] says so
//
// Nobody waits on either, so neither a slow agent nor a slow run can hold up another. Apart from
// samples an agent can only add to a mailbox what it was asked for, so that an agent out of its
// mind cannot fill it. What is malformed, unasked for, or of no run is dropped and counted.
package fleet
