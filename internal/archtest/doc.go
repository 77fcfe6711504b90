// Package archtest is the floor plan of docs/architecture.md as a test: which
// package may import which, what the pure packages must not touch, and the few
// habits that a machine can check. It has no code but its tests, which read
// the module's source and build nothing.
//
// The plan stands in plan_test.go. Each row carries the reason for its rule,
// and a test that fails prints it.
package archtest
