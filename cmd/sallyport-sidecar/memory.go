package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepMemory keeps this process's memory, which holds keys and the token, from
// other processes of the same user, those that bypass among them, and out of core
// files: the user can neither trace it nor open what /proc shows of it.
func keepMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep the sidecar's memory from other processes: %w", err)
	}
	return nil
}
