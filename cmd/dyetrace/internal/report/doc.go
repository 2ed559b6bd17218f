// Package report turns what the controller answers into what people and scripts read: the
// stable JSON of docs/api.md, and text for a terminal.
// It calls nobody and decides nothing: verdicts and causes come ready from the controller.
package report
