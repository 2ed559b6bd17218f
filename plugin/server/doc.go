// Package server answers users: it turns requests into calls of the runner, the fleet and the
// inventory, and their errors into codes. It also guards the door for users and agents alike. It
// decides nothing itself.
//
// # Who may do what
//
// There is one port. A client's certificate must carry one URI dyetrace://ROLE/NAME: agents may
// call AgentService, users ControllerService, and nobody anything else. All that have a user's
// certificate may do all that users may.
package server
