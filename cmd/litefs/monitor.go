package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
)

// monitorSlack is how much later than asked for the runtime's monitor may wake, in nanoseconds.
const monitorSlack = "1000000"

// calmMonitor lets the kernel wake the runtime's monitor late. While goroutines are in system calls the monitor looks some
// 14,000 times a second whether another one could have a processor of theirs, which takes a tenth of what a node needs whose
// commits wait for replicas. There are processors to spare without that: see leaveProcessors.
//
// An error says that the monitor stays as it is: the kernel asks for CAP_SYS_NICE.
func calmMonitor() error {
	id, err := monitorThread()
	if err != nil {
		return err
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", id), []byte(monitorSlack), 0)
}

// monitorThread returns the first thread that the runtime has started: the monitor. Should a runtime to come start another
// one first, that one's timers end late, and nothing else.
func monitorThread() (int, error) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	var ids []int
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	i := slices.Index(ids, os.Getpid()) + 1
	if i == len(ids) {
		i = 0 // numbers of threads have begun anew
	}
	return ids[i], nil
}
