package main

import (
	_ "github.com/mattn/go-sqlite3"

	"frameworks/program"
)

func main() { program.Main("sqlite3", "file:%s?_busy_timeout=3000&_txlock=immediate") }
