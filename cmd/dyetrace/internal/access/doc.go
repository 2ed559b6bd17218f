// Package access finds out which controller the user means and with which certificate to call
// it, and makes a client of its API.
// It never calls the controller, and never asks for anything.
package access
