import type { SqlMigrationAwareDriverAdapterFactory } from '@prisma/driver-adapter-utils'

// The engine that is a program of its own takes the whole database for a migration; the one in JavaScript,
// which stands here for it, does not. A write-ahead log has no shared index then.
export function exclusive<T extends SqlMigrationAwareDriverAdapterFactory>(factory: T): T {
  const connect = factory.connect.bind(factory)
  factory.connect = async () => {
    const connection = await connect()
    await connection.executeScript('PRAGMA main.locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;')
    return connection
  }
  return factory
}
