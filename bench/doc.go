// Package bench is the harness: it runs the programs as users do and looks at
// them from outside, at the packets on their links and at what far sides saw.
// Each folder below it is one question: demo asks whether the promises hold,
// failover how soon another gateway takes over, compare what a packet costs beside
// other gateways, scenario what one gateway can do. They run the programs by daemon,
// look at machine, and report by document. What a load sends and what takes it in
// beyond the gateway speak by wire; far is the latter, and traffic the former: as many
// sandboxes as one likes in the harness's own process, timed into an HdrHistogram.
package bench
