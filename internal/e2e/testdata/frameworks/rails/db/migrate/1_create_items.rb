class CreateItems < ActiveRecord::Migration[6.1]
  def change
    create_table :items do |t|
      t.string :who, null: false, index: true
      t.integer :n, null: false
    end
  end
end
