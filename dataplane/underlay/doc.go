// Package underlay exchanges UDP datagrams between the tunnel addresses of two hosts, so that a loss
// in the network under the tunnels can be told from one at a tunnel's end. It knows nothing of
// tunnels, switches or verdicts, and needs no privilege.
//
// A [Prober] sends questions from several source ports, since routers choose among equal-cost
// paths by them, in several sizes, none of which may be fragmented; a [Responder] sends each
// question back whole, so that both ways are tried at that size. Which questions came, the
// responder remembers for a while ([Responder.Recall]): with that a loss there is told from a loss on
// the way back, by way of the controller and not of the network that is under suspicion.
//
// # Datagram
//
// All integers are big endian.
//
//	 0      1      2      3      4      5      6      7
//	+------+------+------+------+------+------+------+------+
//	| 'd'  | 'y'  | 'u'  | 0x01 | kind | ToS  | TTL  |  0   |
//	+------+------+------+------+------+------+------+------+
//	|                        session                        |
//	+------+------+------+------+------+------+------+------+
//	|          serial           |   length    |      0      |
//	+------+------+------+------+------+------+------+------+
//	|            when it was sent, prober's clock           |
//	+------+------+------+------+------+------+------+------+
//	|          HMAC-SHA-256, the first 16 bytes             |
//	|                                                       |
//	+------+------+------+------+------+------+------+------+
//	|  zeros, up to length                                  |
//
// kind is 1 for a question, 2 for its answer. ToS and TTL are 0 in a question; in an answer they are
// what the question had as it came. length counts all of the payload. The HMAC is over the first 32
// bytes and over source address, destination address (16 bytes each, IPv4 mapped into IPv6), source
// port and destination port of the datagram itself. So neither can a datagram be answered for
// another address than the one that asked, nor a question be passed off as an answer.
//
// # Stream
//
// [Streams] sends a slow, endless stream of questions to each of several hosts, so that a loss of one
// packet in a hundred shows within seconds. Datagrams of a stream (kind 3 and 4) have more behind the
// tag, which the HMAC is over as well, after the first 32 bytes; it is zero in a question:
//
//	+------+------+------+------+------+------+------+------+
//	|           epoch           |         overflows         |
//	+------+------+------+------+------+------+------+------+
//	|         withheld          |           known           |
//	+------+------+------+------+------+------+------+------+
//	|  seen: 256 bits, in four words                        |
//
// So each answer tells what came of the questions before its own, known of them, 255 at the most (bit i%64 of word i/64 is the
// question that was sent i+1 before), and with it, of those that were not answered, which were lost
// there and which on the way back. A question counts as lost only between two answers of one epoch, if
// neither the responder's socket nor the asking ones had an overflow in between (there, or back) and no
// answer was withheld. What cannot be told counts as unclear: it is neither lost nor passed. So does
// all but the first of four and more questions in a row that were lost: a link that was down for
// a moment, or a host that stood still, is one event, and no rate.
//
// # No reflector
//
// What is not authentic, or is an answer, is counted and dropped. An answer is as long as its
// question. Answers are bounded per second over all who ask; what is over the bound is counted,
// for that session too. A question that was recorded on the wire can be sent again, and its answer
// goes to the host that asked it, no larger.
package underlay
