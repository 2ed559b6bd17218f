// Package infer says what the failed pairs of a run have in common: the fewest things that, if they
// were broken, would explain all failures and contradict no probe that passed. It does no I/O, knows
// neither time nor chance, and two calls with the same results, in whatever order, return the same.
//
// # How
//
// A packet from one instance to another passes components, each at one or several places of its way:
// the sender's port, its host's switch, the tunnel, the other host's switch, the receiver's port, the
// guest. A result says at which place a packet was lost. What is in that place is suspect. What the
// packet, or any other, passed at all of its places is not: it works. That holds for lost packets too,
// up to where they were lost.
//
// Of the suspects that are left, the one that explains most failures is taken, again and again, until
// all are explained (greedy set cover: never more than 1 + ln n times the fewest possible). Of two
// that explain the same, the one on the host that verdicts point to; then the narrower one. The other
// is named beside it: nothing that was seen tells them apart.
//
// Hosts, networks and instances are told with the results. Racks may be; whether they are or not, they
// are looked for in what passed from host to host: a strongly connected component of that, of two hosts
// at least, whose border nothing passes one way or both, is a suspect like others, and so are two such
// sets that do not reach each other though both reach others. What a name adds is the name, and that
// its hosts need not be seen to reach each other. A set that the results show is suspect only of
// failures that are of several hosts on either side: of one, the host explains as much.
//
// A flow that was found to drop packets is no inference, and comes first among equals.
//
// # What it does not do
//
// It does not doubt verdicts. Pairs that are unknown, or were not probed, speak neither for nor
// against anything. A component that breaks only some of what passes it is not found as such; its
// pairs stand for themselves.
package infer
