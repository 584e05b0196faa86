import { defineConfig } from 'prisma/config'
import { PrismaBetterSQLite3 } from '@prisma/adapter-better-sqlite3'
import { exclusive } from './exclusive'

export default defineConfig({
  experimental: { adapter: true },
  engine: 'js',
  schema: 'schema.prisma',
  migrations: { path: 'both' },
  adapter: async () => exclusive(new PrismaBetterSQLite3({ url: process.env.DATABASE_URL!, timeout: 3000 })),
})
