package main

import (
	_ "modernc.org/sqlite"

	"frameworks/program"
)

func main() { program.Main("sqlite", "file:%s?_pragma=busy_timeout(3000)&_txlock=immediate") }
