<?php
[, $command, $path] = $argv;
$db = new PDO("sqlite:$path", null, null, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION, PDO::ATTR_TIMEOUT => 3]);
switch ($command) {
case "migrate":
    $db->exec("PRAGMA journal_mode=wal");
    $db->exec("BEGIN IMMEDIATE");
    $db->exec("CREATE TABLE items(id INTEGER PRIMARY KEY, who TEXT NOT NULL, n INTEGER NOT NULL)");
    $db->exec("COMMIT");
    break;
case "migrate2":
    $db->exec("ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT ''");
    break;
case "work":
    $insert = $db->prepare("INSERT INTO items(who, n) VALUES (?, ?)");
    $count = $db->prepare("SELECT count(*) FROM items WHERE who = ?");
    try {
        for ($n = 1; $n <= (int)$argv[4]; $n++) {
            $db->beginTransaction();
            $insert->execute([$argv[3], $n]);
            $count->execute([$argv[3]]);
            $got = (int)$count->fetchColumn();
            $count->closeCursor();
            $db->commit();
            if ($got !== $n) {
                throw new Exception("$got rows, want $n");
            }
            echo "$n\n";
            usleep(5000); // two that never pause starve each other, on any disk
        }
    } catch (PDOException $e) {
        echo "error: ", $e->getMessage(), "\n";
    }
    break;
case "check":
    foreach ($db->query("SELECT who, count(*) AS c FROM items GROUP BY who ORDER BY who") as $row) {
        echo $row["who"], " ", $row["c"], "\n";
    }
    break;
}
