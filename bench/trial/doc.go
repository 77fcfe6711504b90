// Package trial is one attempt at a load: what the gateway spent on it, how short
// connections at a rate are made and judged, what to wait for between, what limited a rate,
// when to measure again, and how scenarios are named.
package trial
