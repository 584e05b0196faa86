package main

import (
	_ "github.com/ncruces/go-sqlite3/driver"

	"frameworks/program"
)

func main() { program.Main("sqlite3", "file:%s?_pragma=busy_timeout(3000)&_txlock=immediate") }
