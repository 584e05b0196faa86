package main

import (
	"fmt"
	"os"

	_ "github.com/ncruces/go-sqlite3/driver"

	"frameworks/program"
)

func main() {
	if err := program.Run("sqlite3", "file:%s?_pragma=busy_timeout(3000)&_txlock=immediate", os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
