const { writeSync } = require("fs");
const { PrismaBetterSQLite3 } = require("@prisma/adapter-better-sqlite3");
const { PrismaClient, Prisma } = require("./client");
const [, , command, path, who, limit] = process.argv;
const prisma = new PrismaClient({ adapter: new PrismaBetterSQLite3({ url: "file:" + path, timeout: 3000 }) });

async function work() {
  for (let n = 1; n <= Number(limit); n++) {
    const [, count] = await prisma.$transaction([prisma.item.create({ data: { who, n } }), prisma.item.count({ where: { who } })]);
    if (count !== n) throw new RangeError(`${count} rows, want ${n}`);
    writeSync(1, `${n}\n`);
  }
}

async function main() {
  if (command === "work") {
    await work().catch((e) => {
      if (e instanceof RangeError) throw e;
      writeSync(1, `error: ${e.message.trim().split("\n").pop()}\n`);
    });
  } else if (command === "check") {
    const rows = await prisma.item.groupBy({ by: ["who"], _count: true, orderBy: { who: "asc" } });
    for (const row of rows) writeSync(1, `${row.who} ${row._count}\n`);
  }
}

main()
  .finally(() => prisma.$disconnect())
  .catch((e) => {
    console.error(e);
    process.exitCode = 1;
  });
