class AddNote < ActiveRecord::Migration[6.1]
  def change
    # A change of a column makes a new table, copies the rows, and renames it.
    add_column :items, :note, :string, null: false, default: ""
    change_column_null :items, :n, true
  end
end
